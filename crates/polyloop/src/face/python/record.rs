//! What Python workers log, as events of `tracing`: each has the level of its record, the logger's name as its target,
//! and the file and line where it was logged.
//!
//! `tracing` wants all this to be known when the program is built, and to live as long as it. So each place that has logged is
//! remembered for ever, up to a number of them: what is then logged elsewhere is an event of one place for each level.

use std::array;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::Deserialize;
use tracing::field::{Value, display};
use tracing::level_filters::LevelFilter;
use tracing::{Level, dispatcher, warn};
use tracing_core::field::{Field, FieldSet};
use tracing_core::metadata::Kind;
use tracing_core::subscriber::Interest;
use tracing_core::{Callsite, Event, Metadata, callsite, identify_callsite};

use crate::face::log::Listener;

/// Places that are remembered. A program has hundreds; what makes up names for its loggers has no end of them.
const PLACES_MAX: usize = 4096;
/// The target of what is logged beyond.
const TARGET_BEYOND: &str = "polyloop::python";

const FIELDS: [&str; 7] = ["message", "pid", "logger", "level_name", "extra", "stack", "exception"];

/// Levels as Python counts them.
const ERROR: i64 = 40;
const WARNING: i64 = 30;
const INFO: i64 = 20;
const DEBUG: i64 = 10;
/// Everything: a logger's level 0 would mean that it has none.
const ALL: i64 = 1;

/// The least level of records that are worth sending to this listener; `None` where nobody would hear of any.
pub(super) fn least_level(listener: &Listener) -> Option<i64> {
    let level = listener.level().into_level()?;
    Some(match level {
        Level::ERROR => ERROR,
        Level::WARN => WARNING,
        Level::INFO => INFO,
        Level::DEBUG => DEBUG,
        Level::TRACE => ALL,
    })
}

/// Tells what a worker has logged, and how many of its records were dropped before.
pub(super) fn tell(listener: &Listener, pid: Option<u32>, dropped: u64, record: &[u8]) {
    listener.hears(|| {
        if dropped > 0 {
            warn!(target: "polyloop", pid, dropped, "a worker logged more than there was room for");
        }
        if record.is_empty() {
            return;
        }
        match rmp_serde::from_slice::<Record<'_>>(record) {
            Ok(record) => record.tell(pid),
            Err(error) => warn!(target: "polyloop", pid, %error, "a worker sent a log record that can't be read"),
        }
    });
}

/// What a worker tells of a `logging.LogRecord`, by the names that it has there.
#[derive(Deserialize)]
struct Record<'a> {
    name: &'a str,
    levelno: i64,
    levelname: &'a str,
    msg: &'a str,
    pathname: &'a str,
    lineno: u32,
    exc_text: Option<&'a str>,
    stack_info: Option<&'a str>,
    /// What the record has besides, as Python shows a dictionary.
    extra: Option<&'a str>,
}

impl Record<'_> {
    fn tell(&self, pid: Option<u32>) {
        let level = self.level();
        if level > LevelFilter::current() {
            return;
        }
        let key = Key { level, target: self.name, file: self.pathname, line: self.lineno };
        let (place, is_own) = Place::of(key);
        let metadata = place.metadata();
        dispatcher::get_default(|dispatch| {
            if !dispatch.enabled(metadata) {
                return;
            }
            let message = display(self.msg.trim_end_matches('\n'));
            let logger = (!is_own).then_some(self.name);
            let level_name = (!is_usual(self.levelno)).then_some(self.levelname);
            let (extra, stack) = (self.extra.map(display), self.stack_info.map(display));
            let exception = self.exc_text.map(display);
            let values: [&dyn Value; FIELDS.len()] = [&message, &pid, &logger, &level_name, &extra, &stack, &exception];
            let mut names = metadata.fields().iter();
            let names: [Field; FIELDS.len()] = array::from_fn(|_| names.next().expect("there are as many as FIELDS"));
            let fields: [_; FIELDS.len()] = array::from_fn(|index| (&names[index], Some(values[index])));
            dispatch.event(&Event::new(metadata, &metadata.fields().value_set(&fields)));
        });
    }

    fn level(&self) -> Level {
        match self.levelno {
            ERROR.. => Level::ERROR,
            WARNING.. => Level::WARN,
            INFO.. => Level::INFO,
            DEBUG.. => Level::DEBUG,
            _ => Level::TRACE,
        }
    }
}

/// Whether a level of Python's is one of those that `tracing` has, too.
fn is_usual(level: i64) -> bool {
    matches!(level, ERROR | WARNING | INFO | DEBUG)
}

/// What tells one place from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key<'a> {
    level: Level,
    target: &'a str,
    file: &'a str,
    line: u32,
}

/// A place that logs, as `tracing` knows those of the program itself.
struct Place(OnceLock<Metadata<'static>>);

impl Place {
    /// The place of this key; or that of all places beyond those that are remembered, and then says so.
    fn of(key: Key<'_>) -> (&'static Self, bool) {
        static PLACES: OnceLock<Mutex<HashMap<Key<'static>, &'static Place>>> = OnceLock::new();
        let mut places = PLACES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        // Keys of any lifetime are looked for among those that live for ever.
        let known: &HashMap<Key<'_>, &'static Self> = &places;
        if let Some(place) = known.get(&key) {
            return (place, true);
        }
        if places.len() < PLACES_MAX {
            let forever = |text: &str| -> &'static str { Box::leak(text.into()) };
            let key = Key { target: forever(key.target), file: forever(key.file), ..key };
            let place = Self::new(key.level, key.target, Some((key.file, key.line)));
            places.insert(key, place);
            return (place, true);
        }
        static BEYOND: OnceLock<[&Place; 5]> = OnceLock::new();
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        let beyond = BEYOND.get_or_init(|| levels.map(|level| Self::new(level, TARGET_BEYOND, None)));
        let index = levels.iter().position(|level| *level == key.level).unwrap_or_default();
        (beyond[index], false)
    }

    fn new(level: Level, target: &'static str, at: Option<(&'static str, u32)>) -> &'static Self {
        let place: &'static Self = Box::leak(Box::new(Self(OnceLock::new())));
        let fields = FieldSet::new(&FIELDS, identify_callsite!(place));
        let (file, line) = at.unzip();
        place.0.get_or_init(|| Metadata::new("python", target, level, file, line, None, fields, Kind::EVENT));
        callsite::register(place);
        place
    }
}

impl Callsite for Place {
    fn set_interest(&self, _: Interest) {
        // Each event asks: formatting it in the worker has cost more than the answer does.
    }

    fn metadata(&self) -> &Metadata<'static> {
        self.0.get().expect("it is there before anybody hears of the place")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_remembered_up_to_a_number_of_them() {
        fn key(target: &str, line: u32) -> Key<'_> {
            Key { level: Level::WARN, target, file: "app.py", line }
        }
        let (first, is_own) = Place::of(key("app", 1));
        let metadata = first.metadata();
        assert!(is_own);
        assert_eq!((metadata.target(), metadata.file(), metadata.line()), ("app", Some("app.py"), Some(1)));
        assert!(std::ptr::eq(Place::of(key("app", 1)).0, first));
        assert!(!std::ptr::eq(Place::of(key("app", 2)).0, first));
        for number in 0..PLACES_MAX {
            Place::of(key(&format!("app.{number}"), 1));
        }
        let (beyond, is_own) = Place::of(key("app.one_more", 1));
        assert!(!is_own);
        let metadata = beyond.metadata();
        assert_eq!((metadata.target(), *metadata.level(), metadata.file()), (TARGET_BEYOND, Level::WARN, None));
        assert!(std::ptr::eq(Place::of(key("app.another", 7)).0, beyond));
        assert_eq!(*Place::of(Key { level: Level::TRACE, ..key("app.another", 7) }).0.metadata().level(), Level::TRACE);
        assert!(std::ptr::eq(Place::of(key("app", 1)).0, first), "those that are known stay");
    }

    #[test]
    fn a_level_of_pythons_is_the_next_lower_one() {
        let level = |levelno| {
            let (name, levelname, msg, pathname) = ("app", "", "", "");
            let (lineno, exc_text, stack_info, extra) = (0, None, None, None);
            Record { name, levelno, levelname, msg, pathname, lineno, exc_text, stack_info, extra }.level()
        };
        let levels = [i64::MIN, 0, 9, 10, 19, 20, 25, 30, 39, 40, 50, i64::MAX].map(level);
        let (trace, debug, info, warn, error) = (Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR);
        assert_eq!(levels, [trace, trace, trace, debug, debug, info, info, warn, warn, error, error, error]);
    }
}
