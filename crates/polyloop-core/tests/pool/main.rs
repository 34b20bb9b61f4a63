//! The pool manager's behaviour, one test for each, through its inputs and outputs alone.

mod changes;
mod ends;
mod stage;
mod tasks;
mod workers;
