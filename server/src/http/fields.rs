//! Typed reading of a JSON object. Every error names the field by its path.

use std::ops::{Bound, RangeBounds, RangeInclusive};

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::error::ApiError;

/// `(0, max]`.
pub fn above_zero(max: f32) -> (Bound<f32>, Bound<f32>) {
    (Bound::Excluded(0.0), Bound::Included(max))
}

/// A JSON object and where in the request it stands. A field that is `null` counts as absent.
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Empty, or ends with a dot.
    prefix: String,
}

impl<'a> Fields<'a> {
    pub fn root(object: &'a Map<String, Value>) -> Self {
        Self { object, prefix: String::new() }
    }

    /// The object at `path`.
    pub fn nested(value: &'a Value, path: &str) -> Result<Self, ApiError> {
        let object = value.as_object().ok_or_else(|| wrong_type(path, "an object"))?;
        Ok(Self { object, prefix: format!("{path}.") })
    }

    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub fn required(&self, name: &str) -> Result<&'a Value, ApiError> {
        self.get(name).ok_or_else(|| missing(&self.path(name)))
    }

    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    pub fn object(&self, name: &str) -> Result<Option<Self>, ApiError> {
        let path = self.path(name);
        self.get(name).map(|value| Self::nested(value, &path)).transpose()
    }

    pub fn array(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        let array = |v: &'a Value| v.as_array().map(Vec::as_slice);
        self.read(name, "an array", array)
    }

    pub fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    pub fn str(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.read(name, "a string", Value::as_str)
    }

    pub fn integer<T: TryFrom<i64>>(
        &self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        integer(value, &self.path(name), range).map(Some)
    }

    /// A seed: any 64 bits, as clients have signed ones and unsigned ones.
    pub fn seed(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let bits = |value: &Value| value.as_u64().or(value.as_i64().map(i64::cast_unsigned));
        self.read(name, "an integer of 64 bits", bits)
    }

    /// A number in `range`, checked as the f32 it becomes: 1e-60 is not above 0 then.
    pub fn number(
        &self,
        name: &str,
        range: impl RangeBounds<f32>,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.read(name, "a number", Value::as_f64)? else { return Ok(None) };
        let value = value as f32;
        if range.contains(&value) {
            return Ok(Some(value));
        }
        let path = self.path(name);
        Err(ApiError::invalid(&path, format!("`{path}` must be {}", interval(&range))))
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wrong_type(&self.path(name), expected))
    }
}

/// An integer in `range`; 16.0 is none.
pub fn integer<T: TryFrom<i64>>(
    value: &Value,
    path: &str,
    range: RangeInclusive<i64>,
) -> Result<T, ApiError> {
    let expected = || format!("an integer from {} to {}", range.start(), range.end());
    if !value.is_i64() && !value.is_u64() {
        return Err(wrong_type(path, &expected()));
    }
    value
        .as_i64()
        .filter(|number| range.contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| ApiError::invalid(path, format!("`{path}` must be {}", expected())))
}

pub fn missing(path: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, format!("`{path}` is required"))
        .at(path)
        .code("missing_required_parameter")
}

pub fn wrong_type(path: &str, expected: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, format!("`{path}` must be {expected}"))
        .at(path)
        .code("invalid_type")
}

fn interval(range: &impl RangeBounds<f32>) -> String {
    let low = match range.start_bound() {
        Bound::Included(low) => format!("at least {low}"),
        Bound::Excluded(low) => format!("above {low}"),
        Bound::Unbounded => "a number".into(),
    };
    match range.end_bound() {
        Bound::Included(high) => format!("{low} and at most {high}"),
        Bound::Excluded(high) => format!("{low} and below {high}"),
        Bound::Unbounded => low,
    }
}
