//! The pool manager's behaviour, one test for each, through its inputs and outputs alone.

mod changes;
mod ends;
mod nested;
mod stage;
mod streams;
mod tasks;
mod workers;
