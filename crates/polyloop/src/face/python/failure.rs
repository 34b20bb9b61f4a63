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
            let message = format!("a result of type {type_name} can't be sent to Rust: {reason}");
            Error::Remote(RemoteError { type_name, message, sources: Vec::new() })
        }
        Err(error) => Error::Remote(RemoteError::unsendable::<Failure>("read", &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_without_words_is_shown_by_its_type() {
        let mut error = PythonError { type_name: "KeyError".into(), message: "'x'".into(), traceback: String::new() };
        assert_eq!(error.to_string(), "KeyError: 'x'");
        error.message.clear();
        assert_eq!(error.to_string(), "KeyError");
    }

    #[test]
    fn bytes_that_make_no_sense_are_an_error() {
        assert!(matches!(read(b"\xff"), Error::Remote(_)));
    }
}
