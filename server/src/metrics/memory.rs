//! What memory is taken beside what the engine counts: asked for when somebody wants to know.

use std::sync::Arc;

use keepwell_kernels::Backend;

use super::{
    resident_bytes,
    table::{DEVICE_MEMORY, MEMORY, PROCESS_MEMORY, labels},
};
use crate::engine::snapshot::Pages;

pub struct MemoryMeter {
    pub backend: Arc<dyn Backend>,
    pub weight_bytes: usize,
}

impl MemoryMeter {
    /// Gauges of this moment; `pages` is the arena a moment ago.
    pub fn publish(&self, pages: &Pages) {
        let resident = resident_bytes();
        if let Some(bytes) = resident {
            PROCESS_MEMORY.gauge(vec![]).set(bytes as f64);
        }
        let on_device = self.backend.used_memory().unwrap_or_else(|error| {
            tracing::debug!("the device does not tell its memory: {error:#}");
            None
        });
        DEVICE_MEMORY.gauge(vec![]).set(on_device.unwrap_or(0) as f64);
        let known = (self.weight_bytes + pages.touched_bytes()) as u64;
        if let Some(taken) = on_device.or(resident.map(|bytes| bytes as u64)) {
            // Weights that were mapped and never read are no part of the process yet.
            let rest = taken.saturating_sub(known);
            MEMORY.gauge(labels([("component", "rest")])).set(rest as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use keepwell_kernels::{Choice, Result, open};

    use super::*;
    use crate::metrics::{parse::parse, recorder};

    /// A device on which 1000 bytes are in use.
    struct Device;

    impl Backend for Device {
        fn name(&self) -> &'static str {
            "device"
        }

        fn used_memory(&self) -> Result<Option<u64>> {
            Ok(Some(1000))
        }
    }

    fn published(backend: Arc<dyn Backend>, weight_bytes: usize) -> [f64; 3] {
        let recorder = recorder("m").unwrap().build_recorder();
        let _local = metrics::set_default_local_recorder(&recorder);
        let pages = Pages { page_bytes: 10, num_touched: 30, ..Pages::default() };
        MemoryMeter { backend, weight_bytes }.publish(&pages);
        let samples = parse(&recorder.handle().render());
        ["process_resident_memory_bytes", "keepwell_device_memory_bytes", "keepwell_memory_bytes"]
            .map(|name| samples.iter().find(|sample| sample.name == name).unwrap().value)
    }

    #[test]
    fn the_rest_is_that_of_the_memory_the_cache_is_in_and_never_negative() {
        let [_, device, rest] = published(Arc::new(Device), 500);
        assert_eq!((device, rest), (1000.0, 200.0));
        assert_eq!(published(Arc::new(Device), 5000)[2], 0.0);
        let [process, device, rest] = published(open(Choice::Cpu).unwrap().into(), 500);
        assert_eq!((device, rest), (0.0, process - 800.0));
    }
}
