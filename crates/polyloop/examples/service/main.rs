//! A web service whose answers come from Python, and that goes on answering while its workers are killed.
//!
//! `cargo run --features python --example service [interpreter]`, where the interpreter has the package `polyloop`.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use polyloop::{Cause, Error, PythonPool};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Counts = BTreeMap<String, usize>;

#[derive(Deserialize)]
struct Question {
    text: String,
}

/// What Python counts. Its exceptions are the caller's fault; whatever else goes wrong is not.
async fn count(
    State(py): State<PythonPool>,
    Query(question): Query<Question>,
) -> Result<Json<Counts>, (StatusCode, String)> {
    match py.call("words:count").arg(question.text).await {
        Ok(counts) => Ok(Json(counts)),
        Err(Error::Python(error)) => Err((StatusCode::UNPROCESSABLE_ENTITY, error.to_string())),
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

async fn python(interpreter: PathBuf) -> Result<PythonPool, Error> {
    let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/service");
    PythonPool::builder().interpreter(interpreter).module_path(modules).processes(2).retries(3).build().await
}

/// The status line and the body of an answer.
async fn ask(address: SocketAddr, text: &str) -> io::Result<(String, String)> {
    let mut connection = TcpStream::connect(address).await?;
    let request = format!("GET /count?text={text} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

/// Kills a worker as often as something comes in.
async fn kill_workers(py: PythonPool, mut answers: tokio::sync::mpsc::Receiver<()>) {
    while answers.recv().await.is_some() {
        if let Some(pid) = py.stats().workers.iter().find_map(|worker| worker.pid) {
            // SAFETY: sends a signal. One that is gone already is not there to get it.
            unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
        }
    }
}

/// Asks the service 300 questions, eight at a time, while a worker is killed after every 30 answers.
pub(crate) async fn run(interpreter: PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let py = python(interpreter).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let routes = Router::new().route("/count", get(count)).with_state(py.clone());
    let service = tokio::spawn(async { axum::serve(listener, routes).await });
    let (answered, answers) = tokio::sync::mpsc::channel(1);
    let killing = tokio::spawn(kill_workers(py.clone(), answers));

    let questions = stream::iter(0..300).map(|_| ask(address, "to+be+or+not+to+be")).buffer_unordered(8);
    let mut questions = questions.enumerate();
    while let Some((number, answer)) = questions.next().await {
        let (status, body) = answer?;
        assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 200 OK", r#"{"be":2,"not":1,"or":1,"to":2}"#));
        if number % 30 == 29 {
            answered.send(()).await?;
        }
    }
    drop(answered);
    killing.await?;
    println!("300 answers, while {} workers were killed", py.stats().restarts(Cause::Died));
    service.abort();
    py.close().await?;
    Ok(())
}

/// Runs it.
#[polyloop::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    run(std::env::args_os().nth(1).map_or_else(|| "python3".into(), PathBuf::from)).await
}
