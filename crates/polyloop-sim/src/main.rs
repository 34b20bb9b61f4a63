//! Runs seeds: `--seeds N [--from S] [--jobs J] [--sabotage NAME]`, or one of them: `--seed S [--trace]`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use polyloop_sim::{Figures, Sabotage, run, sweep};

#[derive(Debug, Default)]
struct Options {
    seed: Option<u64>,
    seeds: u64,
    from: u64,
    jobs: usize,
    sabotage: Option<Sabotage>,
    trace: bool,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)) {
        Ok(options) => match options.seed {
            Some(seed) => one(seed, &options),
            None => many(&options),
        },
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options { seeds: 10_000, jobs: cores, ..Options::default() };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        let number = |value: String| value.parse::<u64>().map_err(|error| format!("{value}: {error}"));
        match argument.as_str() {
            "--seed" => options.seed = Some(number(value()?)?),
            "--seeds" => options.seeds = number(value()?)?,
            "--from" => options.from = number(value()?)?,
            "--jobs" => options.jobs = number(value()?)? as usize,
            "--sabotage" => options.sabotage = Some(value()?.parse()?),
            "--trace" => options.trace = true,
            _ => {
                return Err(format!(
                    "unknown option {argument}; known: --seeds --from --jobs --seed --trace --sabotage"
                ));
            }
        }
    }
    Ok(options)
}

fn one(seed: u64, options: &Options) -> ExitCode {
    match run(seed, options.sabotage, options.trace) {
        Ok(()) => {
            println!("seed {seed}: every promise held");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("seed {seed}: {}", failure.what);
            ExitCode::FAILURE
        }
    }
}

fn many(options: &Options) -> ExitCode {
    let started = Instant::now();
    let Figures { seeds, steps, tally, failed, failures } =
        sweep(options.from, options.seeds, options.jobs, options.sabotage);
    let seconds = started.elapsed().as_secs_f64();
    let rate = seeds as f64 / seconds;
    println!("{seeds} seeds in {seconds:.1} s ({rate:.0} a second), {steps} steps");
    for (what, times) in tally {
        println!("{times:>12}  {what}");
    }
    let how = options.sabotage.map_or(String::new(), |sabotage| format!(" --sabotage {sabotage:?}"));
    for failure in &failures {
        println!("seed {}: {}", failure.seed, failure.what);
        println!("    replay: cargo run --release -p polyloop-sim -- --seed {} --trace{how}", failure.seed);
    }
    if failed == 0 {
        println!("every promise held");
        return ExitCode::SUCCESS;
    }
    println!("{failed} seeds failed");
    ExitCode::FAILURE
}
