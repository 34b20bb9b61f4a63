//! The shape of a pool of Python workers, and its start.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::PythonPool;
use super::interpreter::{Interpreter, Orders};
use super::stacks::Stacks;
use crate::driver::DriverConfig;
use crate::face::error::Error;
use crate::face::manager::Owner;
use crate::face::retry::RetryOn;
use crate::face::shape::Shape;

/// Where nobody says which.
const INTERPRETER: &str = "python3";

/// The shape of a [`PythonPool`] to be.
///
/// ```no_run
/// # async fn example() -> Result<(), polyloop::Error> {
/// use std::time::Duration;
/// use polyloop::PythonPool;
///
/// let py = PythonPool::builder()
///     .venv(".venv")
///     .module_path("python")
///     .preload("numpy")
///     .initializer("models:load")
///     .processes(2)
///     .timeout(Duration::from_secs(30))
///     .retries(1)
///     .build()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "`build` makes the pool"]
pub struct PythonBuilder {
    shape: Shape,
    interpreter: PathBuf,
    env: Vec<(OsString, OsString)>,
    current_dir: Option<PathBuf>,
    module_path: Vec<PathBuf>,
    preload: Vec<String>,
    initializer: Option<String>,
    lifespan: Option<String>,
    loop_initializer: Option<String>,
    forward_logs: bool,
}

impl Default for PythonBuilder {
    fn default() -> Self {
        Self {
            shape: Shape::default(),
            interpreter: INTERPRETER.into(),
            env: Vec::new(),
            current_dir: None,
            module_path: Vec::new(),
            preload: Vec::new(),
            initializer: None,
            lifespan: None,
            loop_initializer: None,
            forward_logs: true,
        }
    }
}

impl PythonBuilder {
    /// The interpreter that workers run, a path or a name to be found in `PATH`; `python3` where nobody says otherwise.
    /// The package `polyloop` must be installed there, of this crate's version.
    ///
    /// ```
    /// let with = polyloop::PythonPool::builder().interpreter("/usr/bin/python3.12");
    /// ```
    pub fn interpreter(mut self, path: impl Into<PathBuf>) -> Self {
        self.interpreter = path.into();
        self
    }

    /// The virtual environment of which workers run the interpreter.
    ///
    /// ```
    /// let in_venv = polyloop::PythonPool::builder().venv(".venv");
    /// ```
    pub fn venv(self, path: impl AsRef<Path>) -> Self {
        self.interpreter(path.as_ref().join("bin").join("python"))
    }

    /// A directory where workers look for modules, before all others but those that were said earlier. Without any,
    /// they look where `python -m` does: in their working directory first.
    ///
    /// ```
    /// let own_modules = polyloop::PythonPool::builder().module_path("python");
    /// ```
    pub fn module_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.module_path.push(path.into());
        self
    }

    /// A module that workers import before they take work.
    ///
    /// ```
    /// let warm = polyloop::PythonPool::builder().preload("numpy").preload("models");
    /// ```
    pub fn preload(mut self, module: impl Into<String>) -> Self {
        self.preload.push(module.into());
        self
    }

    /// A plain function without arguments, `"module:function"`, that each worker runs before its first task. If it
    /// raises before any worker has been ready, the pool fails.
    ///
    /// ```
    /// let prepared = polyloop::PythonPool::builder().initializer("models:load");
    /// ```
    pub fn initializer(mut self, function: impl Into<String>) -> Self {
        self.initializer = Some(function.into());
        self
    }

    /// A function, `"module:function"`, of which the async context manager is entered when a worker starts, and left
    /// when it ends, unless it is killed: as the `lifespan` of Python's `Pool`. Tasks find what it yields as
    /// `polyloop.current_worker().state`.
    ///
    /// ```
    /// let connected = polyloop::PythonPool::builder().lifespan("database:connection");
    /// ```
    pub fn lifespan(mut self, function: impl Into<String>) -> Self {
        self.lifespan = Some(function.into());
        self
    }

    /// A function, `"module:function"`, that makes a worker's event loop.
    ///
    /// ```
    /// let on_uvloop = polyloop::PythonPool::builder().loop_initializer("uvloop:new_event_loop");
    /// ```
    pub fn loop_initializer(mut self, function: impl Into<String>) -> Self {
        self.loop_initializer = Some(function.into());
        self
    }

    /// A variable of the workers' environment, beside those of this process.
    ///
    /// ```
    /// let one_thread_each = polyloop::PythonPool::builder().env("OMP_NUM_THREADS", "1");
    /// ```
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The workers' working directory; this process's, as it is when a worker starts, where nobody says otherwise.
    ///
    /// ```
    /// let elsewhere = polyloop::PythonPool::builder().current_dir("/var/lib/service");
    /// ```
    pub fn current_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(path.into());
        self
    }

    /// Worker processes, at least 1; where nobody says otherwise, as many as the CPUs that this process may use.
    ///
    /// ```
    /// let two = polyloop::PythonPool::builder().processes(2);
    /// ```
    pub fn processes(mut self, processes: usize) -> Self {
        self.shape.processes = Some(processes);
        self
    }

    /// Tasks that a worker runs at the same time, at least 1; 16 where nobody says otherwise. Coroutines share a
    /// worker's loop, a plain function has it for itself.
    ///
    /// ```
    /// let one_after_the_other = polyloop::PythonPool::builder().concurrency(1);
    /// ```
    pub fn concurrency(mut self, tasks: u32) -> Self {
        self.shape.concurrency = tasks;
        self
    }

    /// How many times a task whose worker dies is run again, as by [`PythonPool::retries`]; never, where nobody says
    /// otherwise.
    ///
    /// ```
    /// let stubborn = polyloop::PythonPool::builder().retries(2);
    /// ```
    pub fn retries(mut self, retries: u32) -> Self {
        self.shape.options.retries = retries;
        self
    }

    /// For which errors a task is run again, as by [`PythonPool::retry_on`]; for the death of its worker, where nobody
    /// says otherwise.
    ///
    /// ```
    /// use polyloop::{Error, PythonPool};
    ///
    /// let patient = PythonPool::builder().retries(2).retry_on(|error| matches!(error, Error::TaskTimeout { .. }));
    /// ```
    pub fn retry_on(mut self, is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.shape.options.retry_on = Some(RetryOn::new(is_reason));
        self
    }

    /// How long one run of a task may take, as by [`PythonPool::timeout`]; for ever, where nobody says otherwise.
    ///
    /// ```
    /// let strict = polyloop::PythonPool::builder().timeout(std::time::Duration::from_secs(1));
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.shape.options.timeout = Some(timeout);
        self
    }

    /// How long whoever is asked to end, a task or a worker, may take before it is ended; 5 s where nobody says
    /// otherwise.
    ///
    /// ```
    /// let impatient = polyloop::PythonPool::builder().grace(std::time::Duration::from_millis(500));
    /// ```
    pub fn grace(mut self, grace: Duration) -> Self {
        self.shape.grace = grace;
        self
    }

    /// Tasks that a worker runs before another takes its place, exactly; no limit where nobody says otherwise.
    ///
    /// ```
    /// let fresh_for_each = polyloop::PythonPool::builder().max_tasks(1).concurrency(1);
    /// ```
    pub fn max_tasks(mut self, tasks: u64) -> Self {
        self.shape.max_tasks = tasks;
        self
    }

    /// Bytes of memory of its own, not shared pages, that a worker may hold, as by
    /// [`Builder::max_memory`](crate::Builder::max_memory).
    ///
    /// ```
    /// let for_leaky_libraries = polyloop::PythonPool::builder().max_memory(1 << 30);
    /// ```
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.shape.max_memory = bytes;
        self
    }

    /// How old a worker may become before another takes its place, or up to a tenth less.
    ///
    /// ```
    /// let renewed = polyloop::PythonPool::builder().max_age(std::time::Duration::from_secs(3600));
    /// ```
    pub fn max_age(mut self, age: Duration) -> Self {
        self.shape.max_age = Some(age);
        self
    }

    /// Whether what workers log, and their warnings, are events here, with the feature `tracing`; yes where nobody says
    /// otherwise. Such an event has
    ///
    /// - the level of its record: CRITICAL is ERROR, what is below DEBUG is TRACE, other levels are what they are above;
    /// - the logger's name as its target, so that `RUST_LOG=warn,app.worker=debug` does what one expects; `py.warnings`
    ///   for warnings;
    /// - file and line where it was logged;
    /// - the fields `message`; `pid`, the worker's; `exception` and `stack`, as Python shows them; `extra`, what the record
    ///   has besides, as Python shows a dictionary; `level_name`, its name in Python, if `tracing` has no such level.
    ///
    /// Records arrive in order, before the outcome of the task that logged, and also if their worker dies in the
    /// next moment. No task waits for it: what finds no room on the way is counted in an event of this crate's, and texts of a
    /// record of more than 32 KiB are cut. What processes log that a task forks goes to the standard error stream.
    ///
    /// Workers send what this program's subscriber takes at all when they are started, by the most detailed level for
    /// any target ([`LevelFilter::current`]); a level that an initializer gives to Python's root logger goes before that. The
    /// subscriber is the current one where the pool is built, else the global one. If there is none when a worker starts, or
    /// it takes nothing, and in workers whose root logger has a handler once they are initialised, nothing is
    /// forwarded: then, and without the feature, Python writes warnings and worse to the standard error stream, or what
    /// its handlers do with them.
    ///
    /// A subscriber remembers each place that logs: 4,096 of them; from further ones events have the target
    /// `polyloop::python`, and their logger's name as the field `logger`.
    ///
    /// [`LevelFilter::current`]: https://docs.rs/tracing/latest/tracing/level_filters/struct.LevelFilter.html#method.current
    ///
    /// ```
    /// let to_stderr = polyloop::PythonPool::builder().forward_logs(false);
    /// ```
    pub fn forward_logs(mut self, forward: bool) -> Self {
        self.forward_logs = forward;
        self
    }

    /// How long the loop of a worker may be blocked by one call before an event of level WARN says so, once, with the
    /// stack of the call, with the feature `tracing`; never for `None` and for zero; after 1 s where nobody says
    /// otherwise. Workers are asked for the stack by the signal SIGRTMIN+3.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let strict = polyloop::PythonPool::builder().block_warning(Duration::from_millis(100));
    /// let calm = polyloop::PythonPool::builder().block_warning(None);
    /// ```
    pub fn block_warning(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.shape.block_warning = limit.into();
        self
    }

    /// Starts the workers, and waits until one is ready.
    ///
    /// # Errors
    /// [`Error::WorkerStart`] where workers do not start: it says what to install where the interpreter has no package
    /// `polyloop`, or one of another version, and shows the exception of an initializer. [`Error::Config`] for an
    /// impossible shape, and for one that takes more file descriptors than this process may have; [`Error::Os`] when the
    /// operating system refuses.
    ///
    /// # Panics
    /// On a runtime whose I/O driver is not enabled.
    ///
    /// ```no_run
    /// # async fn example() {
    /// use polyloop::{Error, PythonPool};
    ///
    /// let failed = PythonPool::builder().interpreter("/usr/bin/true").build().await.err();
    /// assert!(matches!(failed, Some(Error::WorkerStart(_))));
    /// # }
    /// ```
    pub async fn build(self) -> Result<PythonPool, Error> {
        let (config, orders) = self.plan()?;
        let Self { shape, interpreter, env, current_dir, forward_logs, .. } = self;
        // A path is this process's, a name to be looked for.
        let path = if interpreter.components().count() > 1 { std::path::absolute(interpreter)? } else { interpreter };
        let stacks = Stacks::new()?;
        let interpreter = Interpreter { path, orders, env, current_dir, forward_logs, stacks };
        let owner = Owner::start(config, Arc::new(interpreter)).await?;
        Ok(PythonPool::new(owner, shape.options))
    }

    fn plan(&self) -> Result<(DriverConfig, Orders), Error> {
        let functions = [&self.initializer, &self.lifespan, &self.loop_initializer];
        if functions.into_iter().flatten().any(|name| !super::is_function_name(name)) {
            return Err(super::NOT_A_FUNCTION_NAME);
        }
        let config = self.shape.config(self.lifespan.is_none())?.within_bounds();
        let orders = Orders {
            parent: std::process::id(),
            module_path: self.module_path.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
            preload: self.preload.clone(),
            initializer: self.initializer.clone(),
            lifespan: self.lifespan.clone(),
            loop_initializer: self.loop_initializer.clone(),
            concurrency: self.shape.concurrency,
            grace_s: config.grace.as_secs_f64(),
            log_level: None,
        };
        Ok((config, orders))
    }
}

/// A path is this process's, wherever the workers are to be.
fn absolute(path: &Path) -> Result<String, Error> {
    let path = std::path::absolute(path)?;
    path.to_str().map(str::to_owned).ok_or(Error::Config("a module path must be UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_such_that_python_can_wait_for_them() {
        let (config, orders) = PythonBuilder::default().grace(Duration::MAX).plan().unwrap();
        let most_s = std::ffi::c_int::MAX.into();
        assert!(orders.grace_s == config.grace.as_secs_f64() && orders.grace_s < most_s, "{}", orders.grace_s);
    }
}
