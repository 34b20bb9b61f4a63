//! Changes of the staff that the host asks for while the pool runs.

use std::io;

use polyloop_core::WorkerId;

use super::Driver;

impl Driver {
    /// The most workers that [`Self::resize`] allows: every one may have a successor beside it.
    pub fn processes_max(&self) -> u16 {
        self.link.layout.seats / 2
    }

    /// Has so many workers from now on, at least one for each queue. Returns those that are sent away, which finish
    /// what they run. Nothing happens to a pool that closes.
    ///
    /// # Errors
    /// When the operating system refuses.
    ///
    /// # Panics
    /// When there are to be fewer than queues, or more than [`Self::processes_max`]: an error in the caller.
    pub fn resize(&mut self, processes: u16) -> io::Result<Vec<WorkerId>> {
        assert!((self.config.queues..=self.processes_max()).contains(&processes), "an impossible number of workers");
        let now = self.now();
        self.config.processes = processes;
        let sent_away = self.pool.resize(now, processes);
        self.act_and_rest(0)?;
        Ok(sent_away)
    }

    /// Replaces all workers by new ones, one after the other. Returns those that will be replaced.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn restart(&mut self) -> io::Result<Vec<WorkerId>> {
        let now = self.now();
        let old = self.pool.restart(now);
        self.act_and_rest(0)?;
        Ok(old)
    }

    /// Whether there are as many workers that take work as there should be.
    pub fn is_up(&self) -> bool {
        self.pool.is_up()
    }
}
