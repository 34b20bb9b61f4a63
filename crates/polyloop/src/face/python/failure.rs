//! What Python workers tell of failures.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error as StdError;

use crate::face::error::{Error, RemoteError};

/// An exception that a Python function raised.
///
/// ```no_run
/// # async fn example(py: polyloop::PythonPool) {
/// use polyloop::Error;
///
/// let Err(Error::Python(error)) = py.call::<i64>("builtins:int").arg("x").await else { panic!() };
/// assert_eq!(error.type_name, "ValueError");
/// assert_eq!(error.message, "invalid literal for int() with base 10: 'x'");
/// eprintln!("{}", error.traceback);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, StdError)]
#[non_exhaustive]
pub struct PythonError {
    /// The full name of the exception's type, as Python shows it: `ValueError`, `package.module.Name`.
    pub type_name: String,
    /// What it says.
    pub message: String,
    /// Where it was raised, in the worker, as Python shows it; with the exceptions that caused it.
    pub traceback: String,
    /// The full names of the classes that its type is derived from, in Python's order, `BaseException` last.
    pub bases: Vec<String>,
}

impl PythonError {
    /// Whether `except` with this class would catch it: whether it is of this class, or of one derived from it. A class is
    /// named in full and by the name that it was defined with, as a traceback shows it: `OSError`, not `IOError`;
    /// `json.decoder.JSONDecodeError`, not `JSONDecodeError`, which might be anyone's. Those of Python itself may have
    /// their module's name, `builtins`, or not.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) {
    /// use polyloop::Error;
    ///
    /// let Err(Error::Python(error)) = py.call::<i32>("json:loads").arg("?").await else { panic!() };
    /// assert!(error.is_instance("json.decoder.JSONDecodeError") && error.is_instance("ValueError"));
    /// assert!(!error.is_instance("OSError"));
    /// # }
    /// ```
    pub fn is_instance(&self, class: &str) -> bool {
        let class = class.strip_prefix("builtins.").unwrap_or(class);
        self.type_name == class || self.bases.iter().any(|base| base == class)
    }
}

impl fmt::Display for PythonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.type_name)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// Why a task has no result of its own.
#[derive(Deserialize)]
enum Failure {
    Raised(PythonError),
    Unsendable { type_name: String, reason: String },
}

/// What a worker has written of a failure.
pub(super) fn read(bytes: &[u8]) -> Error {
    match rmp_serde::from_slice(bytes) {
        Ok(Failure::Raised(error)) => Error::Python(error),
        Ok(Failure::Unsendable { type_name, reason }) => {
            let message = format!("a value of type {type_name} can't be sent to Rust: {reason}");
            Error::Remote(RemoteError { type_name, message, sources: Vec::new() })
        }
        Err(error) => Error::Remote(RemoteError::unsendable::<Failure>("read", &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_error() -> PythonError {
        let bases = ["LookupError", "Exception", "BaseException"].map(str::to_owned).into();
        PythonError { type_name: "KeyError".into(), message: "'x'".into(), traceback: String::new(), bases }
    }

    #[test]
    fn an_exception_is_an_instance_of_its_class_and_of_those_that_it_is_derived_from() {
        let error = key_error();
        for class in ["KeyError", "builtins.KeyError", "LookupError", "BaseException"] {
            assert!(error.is_instance(class), "{class}");
        }
        for class in ["", "Key", "IndexError", "tasks.KeyError", "object"] {
            assert!(!error.is_instance(class), "{class}");
        }
    }

    #[test]
    fn an_exception_without_words_is_shown_by_its_type() {
        let mut error = key_error();
        assert_eq!(error.to_string(), "KeyError: 'x'");
        error.message.clear();
        assert_eq!(error.to_string(), "KeyError");
    }

    #[test]
    fn bytes_that_make_no_sense_are_an_error() {
        assert!(matches!(read(b"\xff"), Error::Remote(_)));
    }
}
