//! How much happened, for the table.

/// What goes wrong, for the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Fault {
    Lost,
    Duplicated,
    Reordered,
    Cut,
    Crash,
    TornPlan,
    LostIndex,
    RolledBack,
    Restored,
    Cloned,
    ClockJump,
    FailedStep,
    PowerCut,
    GivenBack,
}

impl Fault {
    pub const ALL: [Fault; 14] = [
        Fault::Lost,
        Fault::Duplicated,
        Fault::Reordered,
        Fault::Cut,
        Fault::Crash,
        Fault::TornPlan,
        Fault::LostIndex,
        Fault::RolledBack,
        Fault::Restored,
        Fault::Cloned,
        Fault::ClockJump,
        Fault::FailedStep,
        Fault::PowerCut,
        Fault::GivenBack,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Fault::Lost => "lost",
            Fault::Duplicated => "duplicated",
            Fault::Reordered => "reordered",
            Fault::Cut => "cut",
            Fault::Crash => "crash",
            Fault::TornPlan => "torn-plan",
            Fault::LostIndex => "lost-index",
            Fault::RolledBack => "rolled-back",
            Fault::Restored => "restored",
            Fault::Cloned => "cloned",
            Fault::ClockJump => "clock-jump",
            Fault::FailedStep => "failed-step",
            Fault::PowerCut => "power-cut",
            Fault::GivenBack => "given-back",
        }
    }
}

/// How much happened.
#[derive(Clone, Default, Debug)]
pub struct Stats {
    pub steps: u64,
    pub acts: u64,
    /// Entries that a merge changed.
    pub merges: u64,
    /// Conflict names in trees at rest.
    pub conflicts: u64,
    pub faults: [u64; Fault::ALL.len()],
}

impl Stats {
    pub fn add(&mut self, other: &Stats) {
        self.steps += other.steps;
        self.acts += other.acts;
        self.merges += other.merges;
        self.conflicts += other.conflicts;
        for (a, b) in self.faults.iter_mut().zip(other.faults) {
            *a += b;
        }
    }
}
