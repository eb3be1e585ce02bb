//! Deliberate bugs, one switch each, for the simulator: one that cannot see a planted bug proves nothing.
//!
//! Only with the feature `mutants` there is any code for them; without it `mutant!` is the constant `false`.

/// True if this deliberate bug is planted on this thread.
#[cfg(feature = "mutants")]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutant::is_planted($crate::mutant::Mutant::$name)
    };
}

/// No build that is used has any.
#[cfg(not(feature = "mutants"))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}

pub(crate) use mutant;

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;

    macro_rules! mutants {
        ($($name:ident: $about:literal,)*) => {
            /// A deliberate bug.
            #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
            pub enum Mutant {
                $(#[doc = $about] $name,)*
            }

            impl Mutant {
                /// All of them.
                pub const ALL: &[Mutant] = &[$(Mutant::$name,)*];

                /// What is wrong.
                pub fn about(self) -> &'static str {
                    match self { $(Mutant::$name => $about,)* }
                }
            }
        };
    }

    mutants! {
        RemovalIgnoresSeen: "a removed name never comes back, whatever its remover had not seen",
        LastWriterWins: "of siblings only the newest is kept",
        WrongTieBreak: "a name's place is chosen by the order of arrival within an epoch",
        GoneNotJoined: "what removals of a name had seen is not joined",
        RemovedNotJoined: "what removals of versions had seen is not joined",
        HeldVersionForgotten: "a version that a present name holds counts as removed",
        HistoryForgotten: "former parents of directories are not merged",
        DirTimeForgotten: "times of directories are not merged",
        MetaByArrival: "attributes are those that came last",
        StampBelowSeen: "a new stamp is the clock, not above what was seen",
        CoveredNotIgnored: "a late state of what was collected is taken for new",
        CycleNotRepaired: "directories in a cycle stay where nobody sees them",
        PendingNotMarked: "the planner is not told whom else a change concerns",
        UnseenVersionRemoved: "a removal takes versions that the disk did not show",
        SiblingsOverwritten: "a write takes all siblings with it",
        ChoiceWithoutDot: "choosing a conflict copy only drops the other",
        CopiesNotSettled: "conflict copies follow a name that is given away",
        RepairsNotPinned: "changes inside a repaired cycle do not write it down",
        ChainNotAsserted: "a change below a removed directory does not bring it back",
        OneMemberMoved: "of directories that are one only the first is renamed",
        NameHoldsNothing: "a new name does not say which version its author had",
        KnowledgeBeforeHead: "knowledge goes with every batch, before the head",
        KnowledgeOverGap: "knowledge is joined though a batch before is missing",
        CursorOverGap: "the cursor moves though a batch before is missing",
        AnyDotSkips: "a row is skipped if the peer knows any of its changes",
        EchoOn: "states go back to where they came from",
        AncestorsLeftOut: "directories above a row are not sent with it",
        RelayForgotten: "rows of others that were put aside are never sent",
        HeldRowPassed: "the receiver's cursor moves over rows that were put aside",
        NothingSentAgain: "what has no receipt is not sent again",
        TagsNotCompared: "a greeting does not show that an index is an older one",
        OwnIdAccepted: "a greeting with our own replica id is fine",
        CollectedUnheard: "tombstones go before members know of them",
        CollectedEarly: "tombstones go before what members did until they knew is here",
        CollectedWhileShown: "tombstones go while the disk still shows what they removed",
        MoveNotRecognised: "after a crash a move that was made is taken for one that was not",
        SentBeforeDurable: "changes leave before they are durable",
        NoPlanRecord: "what a plan is about to do is not written down before",
        RemovedElsewhereKept: "after a lost index what was removed elsewhere is new",
        WritersNotAskedFor: "what was replaced or removed goes for good while somebody has it open",
        HiddenStaysAway: "what is in a directory that leaves what a filter hides is not planned",
    }

    thread_local! {
        static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Plants a bug on this thread, or none.
    pub fn plant(mutant: Option<Mutant>) {
        PLANTED.set(mutant);
    }

    /// True if this is the bug that is planted.
    pub fn is_planted(mutant: Mutant) -> bool {
        PLANTED.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use switch::{Mutant, is_planted, plant};
