//! What one would write by hand: workers of this program, each with a task that sends it one call after the other and waits
//! for the answer, over its standard input and output. No deaths, cancels or timeouts are dealt with.

use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc, oneshot};

pub const WORKER: &str = "--pipe-worker";

type Call = (u64, oneshot::Sender<u64>);

pub struct Pool {
    calls: mpsc::UnboundedSender<Call>,
}

impl Pool {
    pub fn new(workers: usize) -> Self {
        let (calls, queue) = mpsc::unbounded_channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..workers {
            let program = std::env::current_exe().expect("a program");
            let mut command = Command::new(program);
            command.arg(WORKER).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
            tokio::spawn(drive(command.spawn().expect("a worker"), Arc::clone(&queue)));
        }
        Self { calls }
    }

    pub async fn apply(&self, n: u64) -> u64 {
        let (sender, result) = oneshot::channel();
        self.calls.send((n, sender)).expect("workers");
        result.await.expect("a result")
    }
}

async fn drive(mut worker: Child, queue: Arc<Mutex<mpsc::UnboundedReceiver<Call>>>) {
    let mut input = worker.stdin.take().expect("asked for");
    let mut output = worker.stdout.take().expect("asked for");
    loop {
        let Some((n, sender)) = queue.lock().await.recv().await else { return };
        input.write_all(&n.to_le_bytes()).await.expect("a worker");
        let mut result = [0; 8];
        output.read_exact(&mut result).await.expect("a worker");
        // Nobody gives up here.
        let _ = sender.send(u64::from_le_bytes(result));
    }
}

pub fn serve() {
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut call = [0; 8];
    while input.read_exact(&mut call).is_ok() {
        let result = super::no_op(u64::from_le_bytes(call));
        output.write_all(&result.to_le_bytes()).and_then(|()| output.flush()).expect("a pool");
    }
}
