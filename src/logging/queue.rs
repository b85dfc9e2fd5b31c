//! Lines on their way to standard error. Who logs must not wait for whoever reads: a journal that
//! stands still, or a pipe that nobody empties, would stop the node with its addresses in its
//! hands.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// What may wait, in bytes: the lines of a start with ten thousand Services. Lines beyond it are
/// lost, counted and told of.
const CAPACITY: usize = 4 << 20;
/// Pause before a reader that takes nothing at the moment is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// One end is [`MakeWriter`], the other a thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<QueueState>,
    /// Something waits.
    filled: Condvar,
    /// Nothing waits any more.
    empty: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: Vec<u8>,
    /// The thread has lines in its hands.
    writing: bool,
    lost: u64,
}

impl Queue {
    /// Starts the thread. `told` is called on it with the number of lines that were lost, once
    /// there is room again.
    pub fn start(
        out: impl Write + Send + 'static,
        told: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Queue> {
        let queue = Queue::default();
        let reader = queue.clone();
        thread::Builder::new()
            .name("log".into())
            .stack_size(128 * 1024)
            .spawn(move || reader.run(out, told))?;
        Ok(queue)
    }

    /// Waits until everything is written, or for so long.
    pub fn flush(&self, patience: Duration) {
        let busy = |state: &mut QueueState| state.writing || !state.waiting.is_empty();
        drop(
            self.0
                .empty
                .wait_timeout_while(self.state(), patience, busy)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut out: impl Write, told: impl Fn(u64)) {
        loop {
            let nothing = |state: &mut QueueState| state.waiting.is_empty();
            let mut state = self
                .0
                .filled
                .wait_while(self.state(), nothing)
                .unwrap_or_else(PoisonError::into_inner);
            // Nothing of it is kept for later: a storm's memory goes with the storm.
            let lines = std::mem::take(&mut state.waiting);
            let lost = std::mem::take(&mut state.lost);
            state.writing = true;
            drop(state);
            write_all(&mut out, &lines);
            if lost > 0 {
                told(lost);
            }
            let mut state = self.state();
            state.writing = false;
            if state.waiting.is_empty() {
                self.0.empty.notify_all();
            }
        }
    }
}

/// As `write_all`, but a reader that is not ready is waited for; one that is gone is not.
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

/// Takes one line.
pub(super) struct Line<'a>(&'a Queue);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        if state.waiting.len() + line.len() > CAPACITY {
            state.lost += 1;
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
    fn nobody_waits_for_a_reader_and_what_was_lost_is_told() {
        let (open, gate) = mpsc::channel();
        let (taken, written) = mpsc::channel();
        let (say, said) = mpsc::channel();
        let told = move |lost| {
            let _ = say.send(lost);
        };
        let queue = Queue::start(Gate(gate, taken), told).unwrap();
        let line = [b'x'; 1024];
        let put = || assert_eq!(queue.make_writer().write(&line).unwrap(), line.len());
        // This one is in the thread's hands, and takes no room.
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
        assert_eq!(said.try_iter().sum::<u64>(), 10, "lines that were lost");
    }
}
