//! Python called from Rust: polyloop's `PythonPool` beside PyO3 in the program's own process, under its one GIL. Each round
//! measures all of them, one after the other; the table has medians and ratios.
//!
//! `make bench-rust-python` runs it. `-- --rounds 7` for more rounds.

use std::ffi::CString;
use std::time::Instant;

use futures_util::TryStreamExt;
use polyloop::PythonPool;
use pyo3::prelude::*;
use pyo3::types::PyModule;

/// The interpreter with the package `polyloop`, and whose libpython is linked.
const INTERPRETER: &str = "POLYLOOP_TEST_PYTHON";
const SOURCE: &str = include_str!("work.py");
const ITEMS: u64 = 1_000;
const CALLS: u64 = 3_000;
const WARM_UP_ITEMS: u64 = 50;

/// Measures of one kind, each round's.
struct Row {
    name: &'static str,
    lanes: usize,
    /// Calls of `compute` a second.
    rates: Vec<f64>,
    /// Microseconds of one call of `no_op`, the median of many.
    calls_us: Vec<f64>,
}

#[polyloop::main]
async fn main() {
    let rounds = std::env::args().skip_while(|arg| arg != "--rounds").nth(1);
    let rounds = rounds.map_or(5, |rounds| rounds.parse().expect("a number of rounds"));
    let row = |name, lanes| Row { name, lanes, rates: Vec::new(), calls_us: Vec::new() };
    let mut pools = [row("polyloop::PythonPool, workers", 1), row("polyloop::PythonPool, workers", 2)];
    let mut threads = [row("PyO3 in-process, threads", 1), row("PyO3 in-process, threads", 2)];
    for _ in 0..rounds {
        for row in &mut pools {
            measure_pool(row).await;
        }
        for row in &mut threads {
            measure_threads(row);
        }
    }
    print_table(pools.iter().chain(&threads));
}

async fn measure_pool(row: &mut Row) {
    let interpreter = std::env::var_os(INTERPRETER).expect("POLYLOOP_TEST_PYTHON names an interpreter with polyloop");
    let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let builder = PythonPool::builder().interpreter(interpreter).module_path(modules).processes(row.lanes);
    let py = builder.build().await.expect("a pool");
    let compute = async |items: u64| -> Vec<u64> {
        py.map::<u64, _>("work:compute", 0..items).try_collect().await.expect("results")
    };
    compute(WARM_UP_ITEMS).await;
    let started = Instant::now();
    assert_eq!(compute(ITEMS).await.len(), ITEMS as usize);
    row.rates.push(ITEMS as f64 / started.elapsed().as_secs_f64());
    let mut calls = Vec::new();
    for n in 0..CALLS {
        let started = Instant::now();
        let answer: u64 = py.call("work:no_op").arg(n).await.expect("an answer");
        calls.push(started.elapsed().as_secs_f64() * 1e6);
        assert_eq!(answer, n);
    }
    row.calls_us.push(median(&mut calls));
    py.close().await.expect("an end");
}

fn measure_threads(row: &mut Row) {
    let module: Py<PyModule> = Python::attach(|py| {
        let source = CString::new(SOURCE).expect("a text without zeros");
        PyModule::from_code(py, &source, c"work.py", c"work").expect("a module").unbind()
    });
    let compute = |items: std::ops::Range<u64>| {
        for n in items {
            // As whoever answers requests does: attached for each call.
            Python::attach(|py| {
                let answer: u64 =
                    module.bind(py).call_method1("compute", (n,)).and_then(|total| total.extract()).expect("a total");
                std::hint::black_box(answer);
            });
        }
    };
    compute(0..WARM_UP_ITEMS);
    let started = Instant::now();
    let share = ITEMS / row.lanes as u64;
    std::thread::scope(|scope| {
        for lane in 0..row.lanes as u64 {
            scope.spawn(move || compute(lane * share..(lane + 1) * share));
        }
    });
    row.rates.push(ITEMS as f64 / started.elapsed().as_secs_f64());
    let mut calls = Vec::new();
    for n in 0..CALLS {
        let started = Instant::now();
        let answer: u64 =
            Python::attach(|py| module.bind(py).call_method1("no_op", (n,))?.extract::<u64>()).expect("an answer");
        calls.push(started.elapsed().as_secs_f64() * 1e6);
        assert_eq!(answer, n);
    }
    row.calls_us.push(median(&mut calls));
}

fn print_table<'a>(rows: impl Iterator<Item = &'a Row>) {
    println!("| Python from Rust | | calls of `compute`, a second | of one's | one call of a no-op, p50 |");
    println!("|---|---|---|---|---|");
    let mut alone = 1.0;
    for row in rows {
        let (rate, call_us) = (median(&mut row.rates.clone()), median(&mut row.calls_us.clone()));
        if row.lanes == 1 {
            alone = rate;
        }
        println!("| {} | {} | {rate:.0} | {:.2} x | {call_us:.1} us |", row.name, row.lanes, rate / alone);
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
