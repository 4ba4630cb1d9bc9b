//! A sequence driven by hand is the engine's sequence.

mod common;

use std::cell::RefCell;

use common::*;
use keepwell_kernels::{Backend, Scoring, Signal, Tier};
use keepwell_models::{Model, Probed, WeightFormat, load_model};
use keepwell_server::{
    calibrate::measure,
    compress::{POLICIES, PolicyId, Protection},
    engine::KvCacheParams,
    trial::{Lab, Recipe, Trial, Way},
};

const CHUNK: usize = 128;

struct World {
    model: Box<dyn Model>,
    backend: std::sync::Arc<dyn Backend>,
}

fn world() -> World {
    let model = load_model(&fixture("tiny-llama3"), WeightFormat::AsFile, fastest()).unwrap();
    World { model, backend: fastest() }
}

impl World {
    fn lab(&self) -> Lab<'_> {
        Lab::new(&*self.model, &*self.backend, CHUNK, Protection::default())
    }

    fn prefilled(&self, recipe: Recipe, len: usize) -> Trial<'_> {
        prefilled(self.lab(), recipe, len)
    }
}

fn prefilled(lab: Lab<'_>, recipe: Recipe, len: usize) -> Trial<'_> {
    let mut trial = lab.start(recipe, 1024).unwrap();
    trial.prefill(&prompt(len)).unwrap();
    trial
}

fn prompt(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i * 37 % 509 + 1).collect()
}

#[test]
fn a_trial_holds_and_says_what_the_engine_holds_and_says() {
    let world = world();
    let (engine, _) = tiny("tiny-llama3", options(64 << 20, CHUNK));
    for policy in POLICIES {
        let policy = PolicyId::from_name(policy.name()).unwrap();
        for budget in [1.0, 0.28, 0.15] {
            let kv_cache = KvCacheParams { budget, min_budget: budget, policy };
            let request = greedy(&prompt(600), 100, kv_cache);
            let (tokens, outcome) = collect(engine.generate(request).unwrap()).unwrap();
            let mut trial = world.prefilled(Recipe { budget, policy }, 600);
            let generated = trial.generate(100, &[]).unwrap();
            let ids: Vec<_> = tokens.iter().map(|t| t.id).collect();
            assert_eq!(generated, ids, "{policy} at {budget}");
            assert_eq!(trial.usage(), outcome.kv_cache, "{policy} at {budget}");
            trial.check();
        }
    }
}

#[test]
fn forcing_what_would_be_generated_gives_the_logits_that_choose_it() {
    let world = world();
    let trial = world.prefilled(Recipe::exact(), 200);
    let generated = trial.fork().unwrap().generate(20, &[]).unwrap();
    let logits = trial.fork().unwrap().force(&generated).unwrap();
    assert_eq!(logits.num_rows(), 20);
    let chosen: Vec<_> = (0..19).map(|row| logits.argmax(row)).collect();
    assert_eq!(chosen, generated[1..]);
}

/// Whatever the policy: what is never demoted goes by no price.
fn changes_no_bit_at_budget_one(lab: Lab<'_>) {
    let exact = prefilled(lab, Recipe::exact(), 700).generate_logits();
    for policy in POLICIES {
        let policy = PolicyId::from_name(policy.name()).unwrap();
        let whole = prefilled(lab, Recipe { budget: 1.0, policy }, 700).generate_logits();
        assert_eq!(whole, exact, "{policy}");
        let squeezed = prefilled(lab, Recipe { budget: 0.5, policy }, 700).generate_logits();
        assert_ne!(squeezed, exact, "{policy}");
    }
}

#[test]
fn a_budget_of_one_changes_no_bit_whatever_the_policy() {
    changes_no_bit_at_budget_one(world().lab());
}

#[test]
fn a_budget_of_one_changes_no_bit_of_a_calibrated_model() {
    let world = world();
    let calibration = measure(&*world.model, &*world.backend, &prompt(600), &|_| {}).unwrap();
    assert!(calibration.basis.is_some());
    changes_no_bit_at_budget_one(world.lab().calibrated(&calibration));
}

trait GenerateLogits {
    /// After some generated tokens, and with them events, the logits of the next ones.
    fn generate_logits(self) -> Vec<f32>;
}

impl GenerateLogits for Trial<'_> {
    fn generate_logits(mut self) -> Vec<f32> {
        self.generate(100, &[]).unwrap();
        let logits = self.force(&prompt(20)).unwrap();
        logits.rows().flatten().copied().collect()
    }
}

#[test]
fn a_fork_goes_its_own_way() {
    let world = world();
    let mut trial = world.prefilled(Recipe { budget: 0.28, ..Recipe::exact() }, 400);
    let before = trial.usage();
    let mut fork = trial.fork().unwrap();
    fork.force(&prompt(100)).unwrap();
    fork.check();
    assert_eq!(trial.usage(), before);
    let (ours, theirs) = (trial.force(&prompt(100)).unwrap(), fork.segment(2));
    assert_eq!(ours.num_rows(), 100);
    assert_eq!(trial.segment(2).keys, theirs.keys);
}

#[test]
fn a_replacement_changes_one_head_and_what_follows_from_it() {
    let world = world();
    let trial = world.prefilled(Recipe::exact(), 200);
    let mut changed = trial.fork().unwrap();
    let segment = trial.segment(0);
    changed.replace(0, &segment.keys, &vec![0.0; segment.values.len()]);
    assert_eq!(changed.segment(0).keys, trial.segment(0).keys);
    assert!(changed.segment(0).values.iter().all(|v| *v == 0.0));
    assert_eq!(changed.segment(1).values, trial.segment(1).values);
    let (a, b) = (trial.fork().unwrap().force(&[5]).unwrap(), changed.force(&[5]).unwrap());
    assert_ne!(a.row(0), b.row(0));
}

#[test]
fn tokens_go_to_the_tiers_they_are_assigned() {
    let world = world();
    let mut trial = world.prefilled(Recipe::exact(), 200);
    let mut assignments = vec![vec![Some(Tier::F16); 200]; trial.num_heads()];
    assignments[3][10..110].fill(None);
    trial.assign(&assignments).unwrap();
    trial.check();
    let states = trial.states(3).unwrap();
    assert!(states.iter().all(|s| s.tier == Tier::F16 && !(10..110).contains(&s.position)));
    assert_eq!((states.len(), trial.usage().evicted), (100, 100));
}

#[test]
fn followed_tokens_are_compressed_as_generated_ones_are() {
    let world = world();
    let start = || world.prefilled(Recipe { budget: 0.28, ..Recipe::exact() }, 200);
    let (mut generated, mut followed) = (start(), start());
    let tokens = generated.generate(80, &[]).unwrap();
    let logits = followed.follow(&tokens[..79]).unwrap();
    followed.check();
    assert_eq!(generated.usage(), followed.usage());
    assert!((0..79).all(|row| logits.argmax(row) == tokens[row + 1]));
}

#[test]
fn observed_tokens_are_scored_but_never_compressed() {
    let world = world();
    let mut trial = world.lab().start(Recipe { budget: 0.2, ..Recipe::exact() }, 512).unwrap();
    let scoring = Scoring { rows: 16, signal: Signal::AttentionMass, decay: 0.0 };
    trial.observe(&prompt(400), Some(scoring)).unwrap();
    let total: f32 = trial.states(0).unwrap().iter().map(|s| s.attribution).sum();
    // The last 16 queries of each query head spread a mass of one each; tiny-llama3 has 4 heads for
    // 2 KV heads, and sums are kept in bf16.
    assert!((total - 32.0).abs() < 1.0, "{total}");
    assert_eq!(trial.usage().evicted, 0);
    assert_eq!(trial.usage().tokens[Tier::F16], 400 * trial.num_heads());
}

#[test]
fn more_tokens_than_there_is_room_for_are_an_error() {
    let world = world();
    let mut trial = world.lab().start(Recipe::exact(), 100).unwrap();
    assert!(trial.prefill(&prompt(400)).is_err());
}

#[test]
fn forcing_from_a_layer_on_says_what_forcing_through_all_of_them_says() {
    let world = world();
    let (forced, num_layers) = (prompt(20), world.model.config().num_layers);
    let trial = world.prefilled(Recipe::exact(), 200);
    let states = RefCell::new(Vec::new());
    let probe = |layer: usize, probed: Probed| {
        if let Probed::States(x) = probed {
            assert_eq!(layer, states.borrow().len());
            states.borrow_mut().push(x.clone());
        }
        Ok(())
    };
    let way = Way { probe: Some(&probe), ..Way::default() };
    let whole = trial.fork().unwrap().force_by(&forced, way).unwrap();
    let states = states.into_inner();
    assert_eq!(states.len(), num_layers);
    let force_from = |layer, states| {
        let way = Way { resumed: Some((layer, states)), ..Way::default() };
        trial.fork().unwrap().force_by(&forced, way)
    };
    for (layer, states) in states.iter().enumerate() {
        let resumed = force_from(layer, states).unwrap();
        assert!(resumed.rows().eq(whole.rows()), "from layer {layer}");
    }
    assert!(force_from(num_layers, &states[0]).is_err(), "there is no such layer");
    let other = states[0].narrow(0, 0, 3).unwrap();
    assert!(force_from(1, &other).is_err(), "states of other tokens");
}
