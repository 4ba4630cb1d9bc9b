//! Whose turn it is: among users who wait, the one with the least service so far.
//!
//! After the virtual token counter of "Fairness in Serving Large Language Models" (Sheng et al.,
//! OSDI 2024, arXiv 2401.00588): a user's counter grows by the tokens computed for them; one who
//! comes back from idling starts no lower than the least served of those who are there, so that
//! idling earns nothing.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

/// Users who left and are remembered for what they had beyond their share.
const MAX_DEBTORS: usize = 4096;

/// Somebody who sends requests. Only a hash: names and keys are nobody's business here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct UserId(pub u64);

impl UserId {
    /// All who do not say who they are.
    pub const ANONYMOUS: Self = Self(0);

    /// The user whom these bytes name. Salted at each start: nobody can aim for another's number.
    pub fn of(name: &[u8]) -> Self {
        static SALT: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(SALT.hash_one(name))
    }
}

/// The users' counters.
#[derive(Debug, Default)]
pub struct Fairness {
    users: HashMap<UserId, Account>,
    /// What the least served of those who were there had; never falls while anybody is there.
    level: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    served: u64,
    num_sequences: usize,
}

impl Fairness {
    /// A sequence of theirs arrives.
    pub fn join(&mut self, user: UserId) {
        self.raise_level();
        let level = self.level;
        let account = self.users.entry(user).or_default();
        if account.num_sequences == 0 {
            account.served = account.served.max(level);
        }
        account.num_sequences += 1;
    }

    /// A sequence of theirs has ended.
    pub fn leave(&mut self, user: UserId) {
        let Some(account) = self.users.get_mut(&user) else { return };
        account.num_sequences -= 1;
        if account.num_sequences == 0 {
            self.forget();
        }
    }

    /// Tokens are computed for them.
    pub fn charge(&mut self, user: UserId, num_tokens: usize) {
        if let Some(account) = self.users.get_mut(&user) {
            account.served += num_tokens as u64;
        }
    }

    pub fn served(&self, user: UserId) -> u64 {
        self.users.get(&user).map_or(self.level, |account| account.served)
    }

    /// Users who have sequences here.
    pub fn num_users(&self) -> usize {
        self.present().count()
    }

    fn present(&self) -> impl Iterator<Item = &Account> {
        self.users.values().filter(|account| account.num_sequences > 0)
    }

    fn raise_level(&mut self) {
        let least = self.present().map(|account| account.served).min();
        self.level = self.level.max(least.unwrap_or(0));
    }

    /// Those who left are remembered as long as they are ahead of those who stayed.
    fn forget(&mut self) {
        self.raise_level();
        if self.present().next().is_none() {
            *self = Self::default();
            return;
        }
        let level = self.level;
        self.users.retain(|_, account| account.num_sequences > 0 || account.served > level);
        let debtors = self.users.iter().filter(|(_, account)| account.num_sequences == 0);
        if debtors.clone().count() > MAX_DEBTORS {
            let least = debtors.min_by_key(|(_, account)| account.served).map(|(user, _)| *user);
            least.map(|user| self.users.remove(&user));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: UserId = UserId(1);
    const B: UserId = UserId(2);

    #[test]
    fn idling_earns_no_credit() {
        let mut fairness = Fairness::default();
        fairness.join(A);
        fairness.charge(A, 500);
        fairness.join(B);
        assert_eq!(fairness.served(B), 500, "as if they had been here all the time");
        fairness.charge(B, 10);
        assert!(fairness.served(A) < fairness.served(B));
    }

    #[test]
    fn leaving_for_a_moment_does_not_clear_what_was_had() {
        let mut fairness = Fairness::default();
        fairness.join(A);
        fairness.join(B);
        fairness.charge(A, 500);
        fairness.leave(A);
        fairness.join(A);
        assert_eq!((fairness.served(A), fairness.served(B)), (500, 0));
    }

    #[test]
    fn without_anybody_there_everybody_starts_anew() {
        let mut fairness = Fairness::default();
        fairness.join(A);
        fairness.charge(A, 500);
        fairness.leave(A);
        fairness.join(A);
        assert_eq!((fairness.served(A), fairness.num_users()), (0, 1));
    }

    #[test]
    fn users_who_left_take_bounded_memory() {
        let mut fairness = Fairness::default();
        fairness.join(A);
        for user in (0..3 * MAX_DEBTORS as u64).map(|user| UserId(user + 10)) {
            fairness.join(user);
            fairness.charge(user, 100 + user.0 as usize);
            fairness.leave(user);
        }
        assert_eq!(fairness.users.len(), MAX_DEBTORS + 1);
        fairness.charge(A, 1 << 40);
        fairness.join(B);
        fairness.leave(B);
        assert_eq!(fairness.users.len(), 1, "nobody is ahead any more");
    }

    #[test]
    fn names_have_numbers_of_their_own_and_keep_them() {
        assert_eq!(UserId::of(b"a"), UserId::of(b"a"));
        assert_ne!(UserId::of(b"a"), UserId::of(b"b"));
    }
}
