//! A few of the tiers.

use keepwell_kernels::{TIERS, Tier};

use crate::cache::Assignment;

/// Bit `tier as usize` says whether the tier is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TierSet(u64);

const _: () = assert!(TIERS.len() <= u64::BITS as usize);

impl TierSet {
    pub(super) fn contains(self, tier: Tier) -> bool {
        self.0 & bit(tier) != 0
    }

    pub(super) fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub(super) fn without(self, tier: Tier) -> Self {
        Self(self.0 & !bit(tier))
    }

    /// In the order of [`TIERS`].
    pub(super) fn iter(self) -> impl Iterator<Item = Tier> {
        TIERS.iter().map(|info| info.tier).filter(move |tier| self.contains(*tier))
    }
}

impl FromIterator<Tier> for TierSet {
    fn from_iter<I: IntoIterator<Item = Tier>>(tiers: I) -> Self {
        Self(tiers.into_iter().fold(0, |set, tier| set | bit(tier)))
    }
}

/// A few of the things that a token may become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AssignmentSet {
    tiers: TierSet,
    evicted: bool,
}

impl AssignmentSet {
    pub(super) fn contains(self, assignment: Assignment) -> bool {
        assignment.map_or(self.evicted, |tier| self.tiers.contains(tier))
    }
}

impl FromIterator<Assignment> for AssignmentSet {
    fn from_iter<I: IntoIterator<Item = Assignment>>(assignments: I) -> Self {
        let mut evicted = false;
        let tiers = assignments.into_iter().inspect(|a| evicted |= a.is_none()).flatten().collect();
        Self { tiers, evicted }
    }
}

fn bit(tier: Tier) -> u64 {
    1 << tier as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in_and_not_what_was_taken_out() {
        let set = TierSet::from_iter([Tier::K3V3, Tier::F16, Tier::K3V3, Tier::K1V1]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Tier::F16, Tier::K3V3, Tier::K1V1]);
        let less = set.without(Tier::F16).without(Tier::K8V8);
        assert_eq!(less.iter().collect::<Vec<_>>(), [Tier::K3V3, Tier::K1V1]);
        assert_eq!((set.len(), less.len(), TierSet::default().len()), (3, 2, 0));
    }

    #[test]
    fn a_set_of_assignments_tells_eviction_from_tiers() {
        let of =
            |assignments: &[Assignment]| -> AssignmentSet { assignments.iter().copied().collect() };
        assert!(of(&[Some(Tier::F16), None]).contains(None));
        assert!(!of(&[Some(Tier::F16)]).contains(None) && !of(&[]).contains(None));
        assert!(of(&[None, Some(Tier::K3V3)]).contains(Some(Tier::K3V3)));
        assert!(!of(&[None]).contains(Some(Tier::F16)));
    }
}
