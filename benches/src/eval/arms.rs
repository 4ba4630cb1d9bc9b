//! What is compared: the server's policies and simulated methods, each at its budgets.

use anyhow::{Result, bail};
use keepwell_server::{
    compress::{POLICIES, PolicyId},
    trial::Recipe,
};

use super::methods::{METHODS, Method, Needs};

#[derive(Clone, Copy)]
pub enum Contender {
    /// Runs for real: tiers, pages, ledger.
    Policy(Recipe),
    /// Simulated on the exact cache; its bytes come from a formula.
    Method(&'static dyn Method),
}

/// One contender at one budget.
#[derive(Clone, Copy)]
pub struct Arm {
    pub contender: Contender,
    /// `None` where the size is the method's own.
    pub budget: Option<f64>,
}

impl Arm {
    pub fn name(&self) -> &'static str {
        match self.contender {
            Contender::Policy(recipe) => recipe.policy.policy().name(),
            Contender::Method(method) => method.name(),
        }
    }

    /// Of a simulated method; `None` for a policy and for the exact cache.
    pub fn family(&self) -> Option<&'static str> {
        match self.contender {
            Contender::Policy(_) => None,
            Contender::Method(method) => (!self.is_full()).then(|| method.family()),
        }
    }

    pub fn needs(&self) -> Needs {
        match self.contender {
            Contender::Policy(_) => Needs::default(),
            Contender::Method(method) => method.needs(),
        }
    }

    pub fn is_policy(&self) -> bool {
        matches!(self.contender, Contender::Policy(_))
    }

    pub fn is_full(&self) -> bool {
        self.name() == METHODS[0].name()
    }
}

/// The exact cache first, then what `names` asks for: `all`, `policies`, `baselines`, or names.
/// Methods have budgets below 1, for 1 is the exact cache; the first policy keeps it, to show what
/// the calibration's basis costs. Other policies would do the same there.
///
/// # Errors
/// A name nobody has, or a budget outside (0, 1].
pub fn arms(names: &[String], budgets: &[f64]) -> Result<Vec<Arm>> {
    if let Some(budget) = budgets.iter().find(|b| !(0.0..=1.0).contains(*b) || **b == 0.0) {
        bail!("a budget is a share in (0, 1]: {budget} is none");
    }
    let known = |name: &str| {
        ["all", "policies", "baselines"].contains(&name)
            || PolicyId::from_name(name).is_some()
            || METHODS.iter().any(|m| m.name() == name)
    };
    if let Some(name) = names.iter().find(|name| !known(name)) {
        bail!("no policy or method {name}: there are {}", all_names().join(", "));
    }
    let wanted =
        |name: &str, group: &str| names.iter().any(|n| n == name || n == group || n == "all");
    let squeezed = || budgets.iter().copied().filter(|b| *b < 1.0);
    let uncompressed = budgets.iter().copied().find(|b| *b == 1.0);
    let mut arms = vec![Arm { contender: Contender::Method(METHODS[0]), budget: Some(1.0) }];
    let policies = POLICIES.iter().filter(|p| wanted(p.name(), "policies"));
    for (index, policy) in policies.enumerate() {
        let policy = PolicyId::from_name(policy.name()).expect("it stands in the table");
        let first = uncompressed.filter(|_| index == 0);
        arms.extend(first.into_iter().chain(squeezed()).map(|budget| {
            let recipe = Recipe { budget: budget as f32, policy };
            Arm { contender: Contender::Policy(recipe), budget: Some(budget) }
        }));
    }
    for method in METHODS[1..].iter().filter(|m| wanted(m.name(), "baselines")) {
        let contender = Contender::Method(*method);
        if method.is_fixed() {
            arms.push(Arm { contender, budget: None });
        } else {
            arms.extend(squeezed().map(|budget| Arm { contender, budget: Some(budget) }));
        }
    }
    Ok(arms)
}

fn all_names() -> Vec<&'static str> {
    POLICIES.iter().map(|p| p.name()).chain(METHODS.iter().map(|m| m.name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str], budgets: &[f64]) -> Vec<(&'static str, Option<f64>)> {
        let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
        arms(&names, budgets).unwrap().iter().map(|a| (a.name(), a.budget)).collect()
    }

    #[test]
    fn the_exact_cache_comes_first_and_fixed_formats_once() {
        let asked = ["uniform_k4v4", "attribution", "recency", "h2o"];
        let arms = names(&asked, &[1.0, 0.28, 0.2]);
        assert_eq!(
            arms,
            [
                ("full", Some(1.0)),
                ("attribution", Some(1.0)),
                ("attribution", Some(0.28)),
                ("attribution", Some(0.2)),
                ("recency", Some(0.28)),
                ("recency", Some(0.2)),
                ("uniform_k4v4", None),
                ("h2o", Some(0.28)),
                ("h2o", Some(0.2)),
            ]
        );
    }

    #[test]
    fn groups_hold_every_policy_and_every_method() {
        let policies = names(&["policies"], &[0.2]).len() - 1;
        let baselines = names(&["baselines"], &[0.2]).len() - 1;
        assert_eq!([policies, baselines], [POLICIES.len(), METHODS.len() - 1]);
        assert_eq!(names(&["all"], &[0.2]).len(), 1 + policies + baselines);
    }

    #[test]
    fn names_of_policies_and_methods_differ() {
        for policy in POLICIES {
            assert!(METHODS.iter().all(|m| m.name() != policy.name()), "{}", policy.name());
        }
    }

    #[test]
    fn unknown_names_and_impossible_budgets_are_refused() {
        assert!(arms(&["nonsense".into()], &[0.2]).is_err());
        for budget in [0.0, -1.0, 1.5, f64::NAN] {
            assert!(arms(&["all".into()], &[budget]).is_err());
        }
    }
}
