//! Verified pieces -> the slot, on a thread of its own, so that a slow medium and a busy processor do not wait for
//! each other. Pieces are copied to buffers of which there are few: they bound memory, and what a kill loses.

use std::cell::RefCell;
use std::sync::mpsc;

use tokio_util::sync::CancellationToken;

use crate::stage::buffer::{Buffer, PIECE, PIECES};
use crate::stage::error::StageError;
use crate::stage::slot::withheld::Sink;
use crate::stage::sources::shared::Shared;

enum Order {
    /// The first `length` bytes of the buffer; so many of them are `reused` from a slot.
    Write {
        buffer: Buffer,
        length: usize,
        offset: u64,
        reused: u64,
    },
    Zero {
        offset: u64,
        length: usize,
    },
    /// All of this group is written.
    Done {
        group: u64,
    },
}

/// The way to the thread.
pub struct Writer {
    jobs: mpsc::SyncSender<Order>,
    /// Buffers that are free again, and those that are known to be.
    freed: mpsc::Receiver<Buffer>,
    idle: RefCell<Vec<Buffer>>,
}

/// Runs `work` with a writer beside it, and returns when all that it was given is written. An error of the writer
/// counts for more than that of `work`, which is its consequence, and cancels `stop`.
pub fn beside<T>(
    shared: &Shared,
    sink: &Sink,
    stop: &CancellationToken,
    work: impl FnOnce(&Writer) -> Result<T, StageError>,
) -> Result<T, StageError> {
    let (jobs, queue) = mpsc::sync_channel(PIECES);
    let (free, freed) = mpsc::channel();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let done = queue.into_iter().try_for_each(|job| write(shared, sink, job, &free));
            done.inspect_err(|_| stop.cancel())
        });
        let idle = (0..PIECES).map(|_| Buffer::new(PIECE)).collect();
        let writer = Writer { jobs, freed, idle: RefCell::new(idle) };
        let done = work(&writer);
        drop(writer);
        let written = thread.join().map_err(|_| StageError::Thread("the writer panicked".into()));
        written.and_then(|written| written).and(done)
    })
}

fn write(shared: &Shared, sink: &Sink, job: Order, free: &mpsc::Sender<Buffer>) -> Result<(), StageError> {
    let (written, own) = match job {
        Order::Write { buffer, length, offset, reused } => {
            sink.write(buffer.first(length), offset)?;
            // The worker may be done and gone.
            free.send(buffer).ok();
            (length, reused)
        }
        Order::Zero { offset, length } => {
            sink.zero(offset, length)?;
            (length, 0)
        }
        Order::Done { group } => {
            sink.frontier.done(group);
            return Ok(());
        }
    };
    shared.progress.send_modify(|p| {
        p.done = p.done.saturating_add(written as u64);
        p.reused = p.reused.saturating_add(own);
    });
    Ok(())
}

impl Writer {
    /// At most a piece; waits for a buffer to copy it to.
    pub fn write(&self, content: &[u8], offset: u64, reused: u64) -> Result<(), StageError> {
        let idle = self.idle.borrow_mut().pop();
        let mut buffer = idle.map_or_else(|| self.freed.recv().map_err(|_| gone()), Ok)?;
        let length = content.len();
        buffer.first_mut(length).copy_from_slice(content);
        self.send(Order::Write { buffer, length, offset, reused })
    }

    pub fn zero(&self, offset: u64, length: usize) -> Result<(), StageError> {
        self.send(Order::Zero { offset, length })
    }

    pub fn done(&self, group: u64) -> Result<(), StageError> {
        self.send(Order::Done { group })
    }

    /// Waits until the slot has what it was given: then every buffer is free.
    pub fn settle(&self) -> Result<(), StageError> {
        let mut idle = self.idle.borrow_mut();
        while idle.len() < PIECES {
            idle.push(self.freed.recv().map_err(|_| gone())?);
        }
        Ok(())
    }

    fn send(&self, job: Order) -> Result<(), StageError> {
        self.jobs.send(job).map_err(|_| gone())
    }
}

fn gone() -> StageError {
    StageError::Thread("the writer stopped".into())
}
