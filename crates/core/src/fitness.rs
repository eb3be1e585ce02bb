//! For what a directory's file system is good enough.
//!
//! Two-way use has to tell what a user did from what it did itself, and to replace without a moment in which a user's
//! version can be lost. What a file system lacks for that is found by trying ([`Finding`]); what it cannot promise
//! although the calls succeed follows from its kind ([`FsClass`]).

/// Where the files of a file system really are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsClass {
    /// On a local device.
    Disk,
    /// In memory only.
    Memory,
    /// In another file system of this machine.
    Stacked,
    /// On another machine.
    Network,
    /// Wherever a user's program has them.
    Fuse,
    /// Nowhere: the kernel shows something as files.
    Pseudo,
}

/// What it means for the verdict that a file system lacks something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Weight {
    /// Worth knowing.
    Note,
    /// Something is not carried, or takes longer.
    Limit,
    /// Not safe where users change files on both ends.
    OneWay,
    /// Of no use.
    Unfit,
}

/// One thing that was tried or asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What, one word: for programs.
    pub name: &'static str,
    /// Whether it is there.
    pub there: bool,
    /// How much of it, where that has a meaning.
    pub value: String,
    /// What it means if it is not there.
    pub when_absent: &'static str,
    /// How much that matters.
    pub weight: Weight,
}

/// The verdict.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fitness {
    /// Everything works both ways.
    TwoWay,
    /// Both ways, but for what the reasons say.
    TwoWayWithLimits,
    /// Safe only as one end of a one-way sync.
    OneWayOnly,
    /// Not to be used.
    NotFit,
}

impl Fitness {
    /// The word used in output for programs.
    pub fn word(self) -> &'static str {
        match self {
            Fitness::TwoWay => "two_way",
            Fitness::TwoWayWithLimits => "two_way_with_limits",
            Fitness::OneWayOnly => "one_way_only",
            Fitness::NotFit => "not_fit",
        }
    }

    /// A few words for people.
    pub fn words(self) -> &'static str {
        match self {
            Fitness::TwoWay => "fit for two-way use",
            Fitness::TwoWayWithLimits => "fit for two-way use, with limits",
            Fitness::OneWayOnly => "fit for one-way use only",
            Fitness::NotFit => "not fit",
        }
    }
}

/// What follows from the kind of file system alone, and how much it matters.
pub fn of_class(class: FsClass) -> Option<(Weight, &'static str)> {
    match class {
        FsClass::Disk => None,
        FsClass::Memory => {
            Some((Weight::Limit, "its files are in memory: a restart of the machine loses them"))
        }
        FsClass::Stacked => Some((
            Weight::Limit,
            "it shows files of another file system: what is written below it goes unseen",
        )),
        FsClass::Network => Some((
            Weight::OneWay,
            "it is a network file system: other machines change files unseen, and nobody can tell who has one open",
        )),
        FsClass::Fuse => Some((
            Weight::OneWay,
            "a program serves it (FUSE): what it promises, and what happens to files below it, cannot be told",
        )),
        FsClass::Pseudo => {
            Some((Weight::Unfit, "it holds no files: the kernel shows something else as files"))
        }
    }
}

/// Why a file system with neither is for one way only.
pub const NEITHER_EXCHANGE_NOR_IDENTITY: &str =
    "it can neither exchange names nor tell files apart surely: a change of a user's could be lost";

/// The verdict and its reasons, the gravest first. `safely_replaced` says whether a rename can keep what it
/// replaces, `recognised` whether an inode can be told from its successor of the same number.
pub fn judge(
    class: FsClass,
    safely_replaced: bool,
    recognised: bool,
    findings: &[Finding],
) -> (Fitness, Vec<&'static str>) {
    let mut reasons: Vec<(Weight, &'static str)> = of_class(class).into_iter().collect();
    if !safely_replaced && !recognised {
        reasons.push((Weight::OneWay, NEITHER_EXCHANGE_NOR_IDENTITY));
    }
    let absent = findings.iter().filter(|f| !f.there && f.weight > Weight::Note);
    reasons.extend(absent.map(|f| (f.weight, f.when_absent)));
    reasons.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    let fitness = match reasons.first().map(|(weight, _)| *weight) {
        None | Some(Weight::Note) => Fitness::TwoWay,
        Some(Weight::Limit) => Fitness::TwoWayWithLimits,
        Some(Weight::OneWay) => Fitness::OneWayOnly,
        Some(Weight::Unfit) => Fitness::NotFit,
    };
    (fitness, reasons.into_iter().map(|(_, text)| text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(weight: Weight) -> Finding {
        Finding { name: "x", there: false, value: String::new(), when_absent: "no x", weight }
    }

    #[test]
    fn a_local_disk_that_can_everything_is_fit() {
        let notes = [lacking(Weight::Note), Finding { there: true, ..lacking(Weight::Unfit) }];
        assert_eq!(judge(FsClass::Disk, true, true, &notes), (Fitness::TwoWay, vec![]));
    }

    #[test]
    fn the_gravest_reason_decides_and_comes_first() {
        let (fitness, reasons) = judge(FsClass::Memory, true, true, &[lacking(Weight::OneWay)]);
        assert_eq!((fitness, reasons[0], reasons.len()), (Fitness::OneWayOnly, "no x", 2));
        assert_eq!(judge(FsClass::Fuse, true, true, &[lacking(Weight::Unfit)]).0, Fitness::NotFit);
    }

    #[test]
    fn network_and_fuse_are_one_way_and_pseudo_is_nothing() {
        assert_eq!(judge(FsClass::Network, true, true, &[]).0, Fitness::OneWayOnly);
        assert_eq!(judge(FsClass::Fuse, true, true, &[]).0, Fitness::OneWayOnly);
        assert_eq!(judge(FsClass::Pseudo, true, true, &[]).0, Fitness::NotFit);
    }

    #[test]
    fn one_of_exchange_and_identity_is_enough_for_two_ways() {
        assert_eq!(judge(FsClass::Disk, false, false, &[]).0, Fitness::OneWayOnly);
        assert_eq!(judge(FsClass::Disk, true, false, &[]).0, Fitness::TwoWay);
        assert_eq!(judge(FsClass::Disk, false, true, &[]).0, Fitness::TwoWay);
    }
}
