//! Texts measured by native code that crashes on some of them: the program goes on, and knows on which.

use std::ffi::CString;

use futures_util::StreamExt;
use polyloop::{Error, Pool};

/// What a C library may do with input that it did not expect.
fn measure(text: String) -> usize {
    let text = CString::new(text);
    let start = text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: none where the text had a zero in it.
    unsafe { libc::strlen(start) }
}

/// Runs it.
#[polyloop::main]
pub(crate) async fn main() -> Result<(), Error> {
    let texts = ["one", "two", "th\0ree", "four", "fi\0ve", "six"];
    let pool = Pool::builder().processes(2).retries(3).build().await?;
    let mut lengths = pool.map(measure, texts.map(String::from));
    for text in texts {
        match lengths.next().await.expect("one for each") {
            Ok(length) => println!("{text:?} has {length} bytes"),
            // Told after it has killed three workers while it was alone: the others were not to blame.
            Err(Error::PoisonTask(death)) => println!("{text:?} can't be measured: {death}"),
            Err(error) => return Err(error),
        }
    }
    drop(lengths);
    assert_eq!(pool.stats().done, 4);
    pool.close().await
}
