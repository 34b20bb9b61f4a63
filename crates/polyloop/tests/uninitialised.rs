//! A program that has not called `init`: its workers would run it from its beginning, and start workers.

use polyloop::{Error, Pool};

#[test]
fn a_program_that_can_not_become_a_worker_is_told_what_to_write() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(Pool::builder().build()).err().unwrap();
    assert!(matches!(error, Error::NotInitialised));
    assert!(error.to_string().contains("polyloop::init()"), "{error}");
}
