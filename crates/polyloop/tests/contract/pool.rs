//! What all pools have in common, and how a test is run over each. Where they differ on purpose, the difference is a method
//! here.

use std::future::Future;
use std::time::Duration;

use crate::rig;
use crate::tasks::{Kind, Task, Value, echo, enter, leave, perform, perform_async, subtract};
use polyloop::{Apply, Builder, Cause, Error, Map, Pool, PythonBuilder, PythonPool, State, Stats, TaskHandle};

/// A handle of a pool.
pub(crate) trait WorkerPool: Clone + Send + Sync + 'static {
    type Builder: PoolBuilder<Pool = Self>;

    /// The module of its tests, beside those of the others.
    const MODULE: &'static str;

    /// Whether a worker that is blocked is told of with its stack: nobody knows where a Rust program is.
    const TELLS_STACKS: bool;

    /// Runs a test, if there is what its workers need: on one thread, then on several.
    fn run<F: Future<Output = ()>>(test: impl Fn() -> F);

    fn builder(processes: usize) -> Self::Builder;

    fn apply(&self, task: Task) -> Apply<u64>;
    fn spawn(&self, task: Task) -> TaskHandle<u64>;
    /// Has one function do each task of the input.
    fn map<I: IntoIterator<Item = Task>>(&self, kind: Kind, input: I) -> Map<I::IntoIter, u64>;
    /// Subtracts the second number of each item from the first.
    fn starmap<I: IntoIterator<Item = (i64, i64)>>(&self, input: I) -> Map<I::IntoIter, i64>;
    /// Gives a value back.
    fn echo<T: Value>(&self, value: T) -> TaskHandle<T>;
    /// Gives each item back.
    fn echo_all<I: IntoIterator<Item: Value>>(&self, input: I) -> Map<I::IntoIter, I::Item>;

    fn timeout(&self, timeout: Duration) -> Self;
    fn retries(&self, retries: u32) -> Self;
    fn retry_on(&self, is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self;
    fn in_thread(&self) -> Self;
    fn resize(&self, processes: usize) -> Result<(), Error>;
    fn stats(&self) -> Stats;
    fn close(&self) -> impl Future<Output = Result<(), Error>>;
    fn terminate(&self) -> impl Future<Output = Result<(), Error>>;

    /// What a task said that failed by itself; `None` for another error.
    fn told_by_task(error: &Error) -> Option<&str>;

    /// Checks what is left of a worker, idle else, once a plain function that blocked its loop has had to end. A Rust
    /// worker can't end it and goes with it; a Python one is interrupted, and lives.
    fn check_after_block(&self, worker: u32) -> impl Future<Output = ()>;

    /// A worker's process, of a pool that has one.
    fn pid(&self) -> impl Future<Output = u32> {
        async { u32::try_from(self.apply(Task::Pid).await.unwrap()).unwrap() }
    }

    fn pids(&self) -> Vec<u32> {
        rig::pids(&self.stats())
    }

    /// Waits until so many workers take work.
    fn until_ready(&self, workers: usize) -> impl Future<Output = ()> {
        rig::until_ready(|| self.stats(), workers)
    }

    /// Waits until no task waits or runs.
    fn until_idle(&self) -> impl Future<Output = ()> {
        rig::until(|| self.stats().unfinished == 0)
    }

    fn until_state(&self, state: State) -> impl Future<Output = ()> {
        rig::until(move || self.stats().state == state)
    }

    /// Waits until so many workers have been replaced for this reason.
    fn until_replaced(&self, cause: Cause, workers: u64) -> impl Future<Output = ()> {
        rig::until(move || self.stats().restarts(cause) == workers)
    }
}

/// The shape of a pool to be.
pub(crate) trait PoolBuilder: Clone {
    type Pool: WorkerPool;

    fn concurrency(self, tasks: u32) -> Self;
    fn retries(self, retries: u32) -> Self;
    fn retry_on(self, is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self;
    fn timeout(self, timeout: Duration) -> Self;
    fn grace(self, grace: Duration) -> Self;
    fn max_tasks(self, tasks: u64) -> Self;
    fn max_memory(self, bytes: u64) -> Self;
    fn max_age(self, age: Duration) -> Self;
    fn block_warning(self, limit: impl Into<Option<Duration>>) -> Self;
    /// The lifespan of the tests.
    fn lifespan(self) -> Self;
    fn build(self) -> impl Future<Output = Result<Self::Pool, Error>>;

    fn start(self) -> impl Future<Output = Self::Pool> {
        async { self.build().await.unwrap() }
    }
}

/// A pool of so many workers, and else as nobody says otherwise.
pub(crate) async fn pool<P: WorkerPool>(processes: usize) -> P {
    P::builder(processes).start().await
}

/// What both types of handles have, under the same names.
macro_rules! own_methods {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($argument: $type),*) -> $result {
            self.$name($($argument),*)
        })*
    };
    ($(fn $name:ident(self, $argument:ident: $type:ty);)*) => {
        $(fn $name(self, $argument: $type) -> Self {
            self.$name($argument)
        })*
    };
}

macro_rules! own_methods_of_pools {
    () => {
        own_methods! {
            fn timeout(timeout: Duration) -> Self;
            fn retries(retries: u32) -> Self;
            fn retry_on(is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self;
            fn in_thread() -> Self;
            fn resize(processes: usize) -> Result<(), Error>;
            fn stats() -> Stats;
            fn close() -> impl Future<Output = Result<(), Error>>;
            fn terminate() -> impl Future<Output = Result<(), Error>>;
        }
    };
}

macro_rules! own_methods_of_builders {
    () => {
        own_methods! {
            fn concurrency(self, tasks: u32);
            fn retries(self, retries: u32);
            fn retry_on(self, is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static);
            fn timeout(self, timeout: Duration);
            fn grace(self, grace: Duration);
            fn max_tasks(self, tasks: u64);
            fn max_memory(self, bytes: u64);
            fn max_age(self, age: Duration);
            fn block_warning(self, limit: impl Into<Option<Duration>>);
        }
    };
}

impl PoolBuilder for Builder {
    type Pool = Pool;

    own_methods_of_builders!();

    fn lifespan(self) -> Self {
        self.lifespan(enter, leave)
    }

    fn build(self) -> impl Future<Output = Result<Pool, Error>> {
        self.build()
    }
}

impl WorkerPool for Pool {
    type Builder = Builder;

    const MODULE: &'static str = "rust";
    const TELLS_STACKS: bool = false;

    fn run<F: Future<Output = ()>>(test: impl Fn() -> F) {
        rig::run(test);
    }

    fn builder(processes: usize) -> Builder {
        Self::builder().processes(processes)
    }

    fn apply(&self, task: Task) -> Apply<u64> {
        match task.kind() {
            Kind::Plain => self.apply(perform, (task,)),
            Kind::Async => self.apply(perform_async, (task,)),
        }
    }

    fn spawn(&self, task: Task) -> TaskHandle<u64> {
        match task.kind() {
            Kind::Plain => self.spawn(perform, (task,)),
            Kind::Async => self.spawn(perform_async, (task,)),
        }
    }

    fn map<I: IntoIterator<Item = Task>>(&self, kind: Kind, input: I) -> Map<I::IntoIter, u64> {
        match kind {
            Kind::Plain => self.map(perform, input),
            Kind::Async => self.map(perform_async, input),
        }
    }

    fn starmap<I: IntoIterator<Item = (i64, i64)>>(&self, input: I) -> Map<I::IntoIter, i64> {
        self.starmap(subtract, input)
    }

    fn echo<T: Value>(&self, value: T) -> TaskHandle<T> {
        self.spawn(echo, (value,))
    }

    fn echo_all<I: IntoIterator<Item: Value>>(&self, input: I) -> Map<I::IntoIter, I::Item> {
        self.map(echo, input)
    }

    own_methods_of_pools!();

    fn told_by_task(error: &Error) -> Option<&str> {
        match error {
            Error::TaskPanicked(panic) => Some(&panic.message),
            _ => None,
        }
    }

    async fn check_after_block(&self, worker: u32) {
        self.until_replaced(Cause::Overdue, 1).await;
        assert_ne!(self.pid().await, worker);
    }
}

impl PoolBuilder for PythonBuilder {
    type Pool = PythonPool;

    own_methods_of_builders!();

    fn lifespan(self) -> Self {
        self.lifespan("tasks:lifespan")
    }

    fn build(self) -> impl Future<Output = Result<PythonPool, Error>> {
        self.build()
    }
}

/// Where Python workers find what they do.
const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/contract/tasks");

fn function(kind: Kind) -> &'static str {
    match kind {
        Kind::Plain => "tasks:perform",
        Kind::Async => "tasks:perform_async",
    }
}

impl WorkerPool for PythonPool {
    type Builder = PythonBuilder;

    const MODULE: &'static str = "python";
    const TELLS_STACKS: bool = true;

    fn run<F: Future<Output = ()>>(test: impl Fn() -> F) {
        rig::python::run(test);
    }

    fn builder(processes: usize) -> PythonBuilder {
        rig::python::builder(processes).module_path(MODULES)
    }

    fn apply(&self, task: Task) -> Apply<u64> {
        self.call(function(task.kind())).arg(task).into_future()
    }

    fn spawn(&self, task: Task) -> TaskHandle<u64> {
        self.call(function(task.kind())).arg(task).spawn()
    }

    fn map<I: IntoIterator<Item = Task>>(&self, kind: Kind, input: I) -> Map<I::IntoIter, u64> {
        self.map(function(kind), input)
    }

    fn starmap<I: IntoIterator<Item = (i64, i64)>>(&self, input: I) -> Map<I::IntoIter, i64> {
        self.starmap("tasks:subtract", input)
    }

    fn echo<T: Value>(&self, value: T) -> TaskHandle<T> {
        self.call("tasks:echo").arg(value).spawn()
    }

    fn echo_all<I: IntoIterator<Item: Value>>(&self, input: I) -> Map<I::IntoIter, I::Item> {
        self.map("tasks:echo", input)
    }

    own_methods_of_pools!();

    fn told_by_task(error: &Error) -> Option<&str> {
        match error {
            Error::Python(exception) => Some(&exception.message),
            _ => None,
        }
    }

    async fn check_after_block(&self, worker: u32) {
        assert_eq!(self.pid().await, worker);
        assert_eq!(self.stats().restarts(Cause::Overdue), 0);
    }
}

/// Makes tests of these, over each kind of workers.
macro_rules! over_each_kind {
    ($($test:ident),* $(,)?) => {
        mod rust {
            $(#[test]
            fn $test() {
                <polyloop::Pool as crate::pool::WorkerPool>::run(super::$test::<polyloop::Pool>);
            })*
        }

        mod python {
            $(#[test]
            fn $test() {
                <polyloop::PythonPool as crate::pool::WorkerPool>::run(super::$test::<polyloop::PythonPool>);
            })*
        }
    };
}

pub(crate) use over_each_kind;
