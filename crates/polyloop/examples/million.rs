//! A map over a million items: drawn from a range as room appears, run on all cores, summed as the results come.

use futures_util::TryStreamExt;
use polyloop::{Error, Pool};

fn sum_of_digits(mut n: u64) -> u64 {
    let mut sum = 0;
    while n > 0 {
        sum += n % 10;
        n /= 10;
    }
    sum
}

/// Runs it.
#[polyloop::main]
pub(crate) async fn main() -> Result<(), Error> {
    let pool = Pool::builder().build().await?;
    let all: u64 = pool.map(sum_of_digits, 0..1_000_000).try_fold(0, async |all, sum| Ok(all + sum)).await?;
    println!("the digits of all numbers below a million add up to {all}");
    assert_eq!(all, 27_000_000);
    pool.close().await
}
