//! scratch
use futures_util::StreamExt;
use polyloop::Pool;
use std::time::Instant;

async fn noop(n: u64) -> u64 {
    n
}

#[polyloop::main]
async fn main() -> Result<(), polyloop::Error> {
    let t = Instant::now();
    let pool = Pool::builder().processes(2).build().await?;
    println!("ready {:?}", t.elapsed());
    let mut all = Vec::new();
    for i in 0..20000 {
        let t = Instant::now();
        assert_eq!(pool.apply(noop, (i,)).await?, i);
        all.push(t.elapsed());
    }
    all.sort();
    println!("apply p50 {:?} p90 {:?}", all[all.len() / 2], all[all.len() * 9 / 10]);
    for _ in 0..3 {
        let t = Instant::now();
        let mut m = pool.map(noop, 0..1_000_000u64);
        let mut n = 0;
        while let Some(x) = m.next().await {
            assert_eq!(x?, n);
            n += 1;
        }
        println!("map {:.2} M/s", n as f64 / t.elapsed().as_secs_f64() / 1e6);
    }
    pool.close().await
}
