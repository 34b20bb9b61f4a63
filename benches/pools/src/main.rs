//! A no-op on other processes: polyloop beside procspawn's pool, a pool of pipes written by hand on tokio, rayon's threads
//! as the floor of a pool without processes, and two processes that ring each other by eventfd as that of a round trip.
//! Then large bytes that go to a worker and come back. Each round measures all of them, one after the other; the tables
//! have medians and ratios.
//!
//! `make bench-rust` runs it. `-- --rounds 7` for more rounds.

mod pipes;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use polyloop::Buffer;
use rayon::prelude::*;
use serde_bytes::ByteBuf;
use tokio::runtime::Runtime;

const WORKERS: usize = 2;
const CALLS: u64 = 5_000;
const ITEMS: u64 = 1_000_000;
const LARGE_BYTES: usize = 64 << 20;
const LARGE_CALLS: usize = 9;
/// For those that take long.
const SLOW_ITEMS: u64 = 20_000;

fn no_op(n: u64) -> u64 {
    n
}

async fn async_no_op(n: u64) -> u64 {
    n
}

/// Calls of procspawn's pool at the same time.
const WAVE: u64 = 100;

/// Measures of one kind, each round's.
struct Row {
    name: &'static str,
    /// Microseconds from call to result, the median of many.
    apply_us: Vec<f64>,
    /// Items a second.
    map: Vec<f64>,
}

fn main() {
    polyloop::init();
    procspawn::init();
    if std::env::args().nth(1).as_deref() == Some(pipes::WORKER) {
        return pipes::serve();
    }
    let rounds = std::env::args().skip_while(|arg| arg != "--rounds").nth(1);
    let rounds = rounds.map_or(5, |rounds| rounds.parse().expect("a number of rounds"));
    // Before there are threads, of which a fork would have one only.
    let floor = (0..rounds).map(|_| eventfd_round_trip_us()).collect();
    let mut rows = vec![Row { name: "eventfd, two processes", apply_us: floor, map: Vec::new() }];
    rows.extend(RIVALS.map(|(name, _)| Row { name, apply_us: Vec::new(), map: Vec::new() }));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    for _ in 0..rounds {
        for (row, (_, measure)) in rows[1..].iter_mut().zip(RIVALS) {
            let (apply_us, map) = measure(&runtime);
            row.apply_us.push(apply_us);
            row.map.push(map);
        }
    }
    print_table(&mut rows);
    let mut large: Vec<_> = LARGE.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for _ in 0..rounds {
        for ((_, times), (_, measure)) in large.iter_mut().zip(LARGE) {
            times.push(measure(&runtime));
        }
    }
    print_large(&mut large);
}

/// Milliseconds for large bytes to a worker and back, the median of some.
const LARGE: [(&str, fn(&Runtime) -> f64); 4] = [
    ("memcpy, there and back", |_| median_ms(|| (), |(), bytes: &Vec<u8>| std::hint::black_box(bytes.clone()).clone())),
    ("polyloop, Buffer", |runtime| {
        let (pool, one) = (new_pool(runtime), Buffer::from(vec![1; LARGE_BYTES]));
        median_ms(|| one.clone(), |one, _| runtime.block_on(pool.apply(|it: Buffer| it, (one,))).expect("a result"))
    }),
    ("polyloop, ByteBuf", |runtime| {
        let pool = new_pool(runtime);
        let call = |bytes| runtime.block_on(pool.apply(|it: ByteBuf| it, (bytes,))).expect("a result");
        median_ms(|| ByteBuf::from(vec![1; LARGE_BYTES]), |bytes, _| call(bytes))
    }),
    ("procspawn::Pool, ByteBuf", |_| {
        let pool = procspawn::Pool::new(WORKERS).expect("a pool");
        let call = |bytes: ByteBuf| procspawn::spawn!(in pool, (bytes) || bytes).join().expect("a result");
        let time = median_ms(|| ByteBuf::from(vec![1; LARGE_BYTES]), |bytes, _| call(bytes));
        pool.shutdown();
        time
    }),
];

fn new_pool(runtime: &Runtime) -> polyloop::Pool {
    runtime.block_on(polyloop::Pool::builder().processes(WORKERS).build()).expect("a pool")
}

/// Of some calls, each with a value that is made before it is timed.
fn median_ms<T, R>(make: impl Fn() -> T, call: impl Fn(T, &Vec<u8>) -> R) -> f64 {
    let bytes = vec![1; LARGE_BYTES];
    let mut times = Vec::new();
    for _ in 0..LARGE_CALLS {
        let value = make();
        let began = Instant::now();
        let back = call(value, &bytes);
        times.push(began.elapsed());
        drop(std::hint::black_box(back));
    }
    median_us(times) / 1e3
}

fn print_large(rows: &mut [(&str, Vec<f64>)]) {
    println!("\n{} MiB to a worker and back\n", LARGE_BYTES >> 20);
    println!("| pool | time | over memcpy |");
    println!("|---|---|---|");
    let floor = median(&mut rows[0].1).unwrap_or(f64::NAN);
    for (name, times) in rows {
        let time = median(times).unwrap_or(f64::NAN);
        println!("| {name} | {time:.1} ms | {:.2} x |", time / floor);
    }
}

type Measure = fn(&Runtime) -> (f64, f64);

const RIVALS: [(&str, Measure); 5] = [
    ("polyloop, async fn", |runtime| run(runtime, polyloop_pool(true))),
    ("polyloop, fn", |runtime| run(runtime, polyloop_pool(false))),
    ("tokio::process and pipes", |runtime| run(runtime, pipe_pool())),
    ("procspawn::Pool", |_| procspawn_pool()),
    ("rayon, threads", |_| rayon_pool()),
];

/// As a task, as most of what calls a pool is one.
fn run(runtime: &Runtime, measure: impl Future<Output = (f64, f64)> + Send + 'static) -> (f64, f64) {
    runtime.block_on(runtime.spawn(measure)).expect("a measure")
}

async fn polyloop_pool(is_async: bool) -> (f64, f64) {
    let pool = polyloop::Pool::builder().processes(WORKERS).build().await.expect("a pool");
    let mut times = Vec::new();
    for n in 0..CALLS {
        let began = Instant::now();
        let result = if is_async { pool.apply(async_no_op, (n,)).await } else { pool.apply(no_op, (n,)).await };
        times.push(began.elapsed());
        assert_eq!(result.expect("a result"), n);
    }
    let began = Instant::now();
    let count =
        if is_async { drain(pool.map(async_no_op, 0..ITEMS)).await } else { drain(pool.map(no_op, 0..ITEMS)).await };
    let map = ITEMS as f64 / began.elapsed().as_secs_f64();
    assert_eq!(count, ITEMS);
    pool.close().await.expect("an end");
    (median_us(times), map)
}

async fn drain<I: Iterator>(mut map: polyloop::Map<I, u64>) -> u64 {
    let mut count = 0;
    while let Some(n) = map.next().await {
        assert_eq!(n.expect("a result"), count);
        count += 1;
    }
    count
}

async fn pipe_pool() -> (f64, f64) {
    let pool = pipes::Pool::new(WORKERS);
    let mut times = Vec::new();
    for n in 0..CALLS {
        let began = Instant::now();
        assert_eq!(pool.apply(n).await, n);
        times.push(began.elapsed());
    }
    let began = Instant::now();
    let results: Vec<u64> =
        futures_util::stream::iter((0..SLOW_ITEMS).map(|n| pool.apply(n))).buffered(2048).collect().await;
    assert_eq!(results.len() as u64, SLOW_ITEMS);
    (median_us(times), SLOW_ITEMS as f64 / began.elapsed().as_secs_f64())
}

fn procspawn_pool() -> (f64, f64) {
    let pool = procspawn::Pool::new(WORKERS).expect("a pool");
    let call = |n: u64| procspawn::spawn!(in pool, (n) || n);
    let mut times = Vec::new();
    for n in 0..CALLS {
        let began = Instant::now();
        assert_eq!(call(n).join().expect("a result"), n);
        times.push(began.elapsed());
    }
    let began = Instant::now();
    // Each of its calls holds file descriptors.
    for wave in 0..SLOW_ITEMS / WAVE {
        let items = wave * WAVE..(wave + 1) * WAVE;
        let handles: Vec<_> = items.clone().map(call).collect();
        for (n, handle) in items.zip(handles) {
            assert_eq!(handle.join().expect("a result"), n);
        }
    }
    let map = SLOW_ITEMS as f64 / began.elapsed().as_secs_f64();
    pool.shutdown();
    (median_us(times), map)
}

fn rayon_pool() -> (f64, f64) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(WORKERS).build().expect("threads");
    let mut times = Vec::new();
    for n in 0..CALLS {
        let began = Instant::now();
        assert_eq!(pool.install(|| no_op(n)), n);
        times.push(began.elapsed());
    }
    let began = Instant::now();
    let results: Vec<u64> =
        pool.install(|| (0..ITEMS).into_par_iter().map(|n| std::hint::black_box(no_op(n))).collect());
    assert_eq!(results.len() as u64, ITEMS);
    (median_us(times), ITEMS as f64 / began.elapsed().as_secs_f64())
}

/// What two processes need at least that wake each other.
fn eventfd_round_trip_us() -> f64 {
    // SAFETY: a process of one thread; the child does nothing but read and write.
    unsafe {
        let (there, back) = (libc::eventfd(0, 0), libc::eventfd(0, 0));
        let wait = |fd: i32| {
            let mut value = 0u64;
            libc::read(fd, (&raw mut value).cast(), 8)
        };
        let ring = |fd: i32| libc::write(fd, (&raw const ONE).cast(), 8);
        static ONE: u64 = 1;
        let child = libc::fork();
        if child == 0 {
            for _ in 0..CALLS {
                wait(there);
                ring(back);
            }
            libc::_exit(0);
        }
        let mut times = Vec::new();
        for _ in 0..CALLS {
            let began = Instant::now();
            ring(there);
            wait(back);
            times.push(began.elapsed());
        }
        libc::waitpid(child, std::ptr::null_mut(), 0);
        libc::close(there);
        libc::close(back);
        median_us(times)
    }
}

fn median_us(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn print_table(rows: &mut [Row]) {
    let medians: Vec<_> =
        rows.iter_mut().map(|row| (row.name, median(&mut row.apply_us), median(&mut row.map))).collect();
    let (floor, ours) = (medians[0].1, medians[1].2);
    println!("{WORKERS} workers, a no-op, medians of {} rounds\n", rows[0].apply_us.len());
    println!("| pool | one call, p50 | over eventfd | map, items/s | of polyloop's |");
    println!("|---|---|---|---|---|");
    for (name, apply_us, map) in medians {
        let apply = apply_us.map_or("-".to_owned(), |us| format!("{us:.1} us"));
        let over = apply_us.zip(floor).map_or("-".to_owned(), |(us, floor)| format!("{:.1} x", us / floor));
        let rate = map.map_or("-".to_owned(), |rate| format!("{:.3} M", rate / 1e6));
        let part = map.zip(ours).map_or("-".to_owned(), |(rate, ours)| format!("{:.3} x", rate / ours));
        println!("| {name} | {apply} | {over} | {rate} | {part} |");
    }
}
