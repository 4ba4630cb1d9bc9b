//! The series that are there before anything happened: a rate needs a first value.

use keepwell_kernels::TIERS;
use metrics::Label;

use super::{
    FAMILIES, Family, Kind,
    engine::Stage,
    rejections,
    table::{
        COMPRESS_TIME, KV_DEMOTED, PROMPT_TOKENS_BY_SOURCE, PROMPT_TOKENS_CACHED_BY_SOURCE,
        REJECTIONS, STEP_TIME, SUCCESS, labels,
    },
};

/// Counters and histograms with all that their labels may say, at 0.
pub fn begin() {
    for family in FAMILIES.iter().filter(|family| family.labels.is_empty()) {
        begin_one(family, vec![]);
    }
    let tiers = TIERS.each_ref().map(|tier| tier.name);
    let labelled: [(Family, &[&'static str]); 7] = [
        (PROMPT_TOKENS_BY_SOURCE, &["local_compute", "local_cache_hit", "external_kv_transfer"]),
        (PROMPT_TOKENS_CACHED_BY_SOURCE, &["device"]),
        (SUCCESS, &["stop", "length", "abort", "error"]),
        (REJECTIONS, &rejections::REASONS),
        (KV_DEMOTED, &tiers),
        (STEP_TIME, &Stage::NAMES),
        (COMPRESS_TIME, &["score", "price", "compact"]),
    ];
    for (family, values) in labelled {
        for value in values {
            begin_one(&family, labels([(family.labels[0], value)]));
        }
    }
}

fn begin_one(family: &Family, labels: Vec<Label>) {
    match family.kind {
        Kind::Counter => family.counter(labels).absolute(0),
        Kind::Histogram(_) => drop(family.histogram(labels)),
        // Set by who knows the value.
        Kind::Gauge => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;
    use crate::metrics::{
        engine::tests::published,
        parse::Sample,
        table::{CACHE_CONFIG, DEVICE_MEMORY, PROCESS_MEMORY},
    };

    /// The family's series, of a histogram its buckets.
    fn series<'a>(scrape: &'a [Sample], family: &Family) -> Vec<&'a Sample> {
        let name = match family.kind {
            Kind::Histogram(_) => format!("{}_bucket", family.name),
            Kind::Counter | Kind::Gauge => family.name.to_owned(),
        };
        scrape.iter().filter(|sample| sample.name == name).collect()
    }

    fn label_names(sample: &Sample) -> BTreeSet<&str> {
        sample.labels.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "le").collect()
    }

    #[test]
    fn every_family_is_there_from_the_start_with_the_labels_of_the_table() {
        let scrape = published();
        // Whoever answers the scrape knows them.
        let later = [PROCESS_MEMORY.name, DEVICE_MEMORY.name];
        for family in FAMILIES.iter().filter(|family| !later.contains(&family.name)) {
            let series = series(&scrape, family);
            assert!(!series.is_empty(), "{}", family.name);
            let engine = ["engine"].into_iter().filter(|_| family.name != REJECTIONS.name);
            let labels = family.labels.iter().copied();
            let expected: BTreeSet<_> = labels.chain(engine).chain(["model_name"]).collect();
            for sample in series {
                assert_eq!(label_names(sample), expected, "{}", family.name);
            }
        }
    }

    #[test]
    fn what_vllm_tells_is_told_under_its_name_type_labels_and_buckets() {
        let scrape = published();
        let families: HashMap<_, _> = FAMILIES.iter().map(|family| (family.name, family)).collect();
        let lines = include_str!("vllm.txt").lines().filter(|line| !line.starts_with('#'));
        let mut known = BTreeSet::new();
        for line in lines {
            let mut words = line.split(' ');
            let [kind, name, labels] = [(); 3].map(|()| words.next().unwrap());
            known.insert(name);
            let family = families.get(name).unwrap_or_else(|| panic!("{name} is missing"));
            let (our_kind, bounds) = match family.kind {
                Kind::Counter => ("counter", &[][..]),
                Kind::Gauge => ("gauge", &[][..]),
                Kind::Histogram(bounds) => ("histogram", bounds),
            };
            assert_eq!(our_kind, kind, "{name}");
            for bound in words.map(|bound| bound.parse::<f64>().unwrap()) {
                assert!(bounds.contains(&bound), "{name} has no bucket up to {bound}");
            }
            let labels: BTreeSet<_> = labels.split(',').chain(["model_name"]).collect();
            for sample in series(&scrape, family) {
                let ours = label_names(sample);
                let may_tell_more = name == CACHE_CONFIG.name;
                assert!(ours == labels || may_tell_more && ours.is_superset(&labels), "{name}");
            }
        }
        let of_vllm = families.keys().copied().filter(|name| name.starts_with("vllm:"));
        assert_eq!(of_vllm.collect::<BTreeSet<_>>(), known);
    }
}
