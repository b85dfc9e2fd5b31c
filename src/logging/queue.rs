//! Lines on their way to standard error. Logging never waits for the reader: a journal that hangs,
//! or a pipe that nobody empties, would stop the node while it owns addresses.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Maximum number of bytes that wait: the lines of a start with ten thousand Services. Further lines
/// are dropped and counted.
const CAPACITY: usize = 4 << 20;
/// Pause before a reader that is not ready is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// A queue of lines: [`MakeWriter`] puts them in, a thread takes them out.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<QueueState>,
    /// Notified when lines wait.
    filled: Condvar,
    /// Notified when all lines are written.
    empty: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: Vec<u8>,
    /// The thread is writing lines.
    writing: bool,
    dropped: u64,
}

impl Queue {
    /// Starts the thread. It calls `dropped` with the number of dropped lines once there is room
    /// again.
    pub fn start(
        out: impl Write + Send + 'static,
        dropped: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Queue> {
        let queue = Queue::default();
        let reader = queue.clone();
        thread::Builder::new()
            .name("log".into())
            .stack_size(128 * 1024)
            .spawn(move || reader.run(out, dropped))?;
        Ok(queue)
    }

    /// Waits until everything is written, at most for `limit`.
    pub fn flush(&self, limit: Duration) {
        let busy = |state: &mut QueueState| state.writing || !state.waiting.is_empty();
        drop(
            self.0
                .empty
                .wait_timeout_while(self.state(), limit, busy)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut out: impl Write, report_dropped: impl Fn(u64)) {
        loop {
            let nothing = |state: &mut QueueState| state.waiting.is_empty();
            let mut state = self
                .0
                .filled
                .wait_while(self.state(), nothing)
                .unwrap_or_else(PoisonError::into_inner);
            // The buffer is not reused: the memory of a storm of lines is freed after it.
            let lines = std::mem::take(&mut state.waiting);
            let dropped = std::mem::take(&mut state.dropped);
            state.writing = true;
            drop(state);
            write_all(&mut out, &lines);
            if dropped > 0 {
                report_dropped(dropped);
            }
            let mut state = self.state();
            state.writing = false;
            if state.waiting.is_empty() {
                self.0.empty.notify_all();
            }
        }
    }
}

/// As [`Write::write_all`], but it waits for a reader that is not ready, and gives up when there is
/// none.
fn write_all(out: &mut impl Write, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return,
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(_) => return,
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// Puts one line into the queue.
pub(super) struct Line<'a>(&'a Queue);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        if state.waiting.len() + line.len() > CAPACITY {
            state.dropped += 1;
        } else {
            state.waiting.extend_from_slice(line);
            drop(state);
            self.0.0.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes a write only when it is let.
    struct Gate(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_and_dropped_lines_are_reported() {
        let (open, gate) = mpsc::channel();
        let (taken, written) = mpsc::channel();
        let (say, said) = mpsc::channel();
        let dropped = move |lines| {
            let _ = say.send(lines);
        };
        let queue = Queue::start(Gate(gate, taken), dropped).unwrap();
        let line = [b'x'; 1024];
        let put = || assert_eq!(queue.make_writer().write(&line).unwrap(), line.len());
        // The thread is writing this one, so it takes no room.
        put();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !queue.state().writing {
            assert!(std::time::Instant::now() < deadline, "the thread takes nothing");
            thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..CAPACITY / line.len() + 10 {
            put();
        }
        drop(open);
        queue.flush(Duration::from_secs(10));
        assert_eq!(
            written.try_iter().map(|bytes| bytes.len()).sum::<usize>(),
            line.len() + CAPACITY
        );
        assert_eq!(said.try_iter().sum::<u64>(), 10, "dropped lines");
    }
}
