//! What stands for products of codes in integers where no instruction set has them: nothing proves
//! that they can be had, so nothing here runs.

use super::{
    pieces::Pages,
    signals,
    softmax::{Partial, Queries},
};
use crate::{Arena, Signal};

/// Has no value.
#[derive(Clone, Copy)]
pub enum Wide {}

#[derive(Default)]
pub struct QueryCodes;

impl QueryCodes {
    pub fn fill(&mut self, wide: Wide, _: &[f32], _: usize, _: bool) {
        match wide {}
    }
}

pub fn serves_many(wide: Wide) -> bool {
    match wide {}
}

pub struct Coded;

impl Coded {
    pub fn new(_: usize) -> Self {
        Self
    }

    pub fn serves(_: usize) -> bool {
        false
    }

    pub fn attend(
        &mut self,
        wide: Wide,
        _: &Arena,
        _: Pages,
        _: (&Queries, &QueryCodes),
        _: &mut Partial,
    ) {
        match wide {}
    }

    pub fn signals(
        &mut self,
        wide: Wide,
        _: &Arena,
        _: Pages,
        _: (&signals::Queries, Signal),
        _: &mut [f32],
    ) {
        match wide {}
    }
}
