//! The series of one metric, each with its labels.
//!
//! Like the family of the metrics library, but it can be looked through: the proxy has to tell which
//! labels still mean something, and to forget the rest. Who counts may keep the number that a
//! series hands out, and count on without a look-up; once the series is forgotten, that number is
//! shown no more.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Numbers of type `M` by labels of type `L`; a clone is another handle of the same.
#[derive(Debug)]
pub struct Series<L, M> {
    all: Arc<RwLock<HashMap<L, M>>>,
    make: fn() -> M,
}

impl<L: Eq + Hash, M: Clone> Series<L, M> {
    /// No series yet; each begins as `make` makes it.
    pub fn new(make: fn() -> M) -> Self {
        Self { all: Arc::default(), make }
    }

    /// The number of these labels, from now on shown.
    pub fn of(&self, labels: L) -> M {
        // A map is whole after each of its functions: a panic elsewhere leaves it usable.
        let known = self.all.read().unwrap_or_else(PoisonError::into_inner).get(&labels).cloned();
        known.unwrap_or_else(|| {
            let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
            all.entry(labels).or_insert_with(self.make).clone()
        })
    }

    /// Shows each, in no order.
    pub fn for_each(&self, mut see: impl FnMut(&L, &M)) {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().for_each(|(labels, number)| see(labels, number));
    }

    /// Forgets all but those whose labels are wanted.
    pub fn retain(&self, mut is_wanted: impl FnMut(&L) -> bool) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|labels, _| is_wanted(labels));
        if all.capacity() > 64 && all.len() < all.capacity() / 4 {
            all.shrink_to_fit();
        }
    }
}

impl<L: Eq + Hash, M: Clone + Default> Default for Series<L, M> {
    fn default() -> Self {
        Self::new(M::default)
    }
}

impl<L, M> Clone for Series<L, M> {
    fn clone(&self) -> Self {
        Self { all: Arc::clone(&self.all), make: self.make }
    }
}

impl<L, M> EncodeMetric for Series<L, M>
where
    L: EncodeLabelSet,
    M: EncodeMetric + TypedMetric,
{
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().try_for_each(|(labels, number)| number.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.all.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn what_is_forgotten_begins_anew() {
        let series = Series::<&str, Counter>::default();
        let (kept, gone) = (series.of("kept"), series.of("gone"));
        kept.inc();
        gone.inc();
        series.retain(|labels| *labels == "kept");
        gone.inc();
        series.of("kept").inc();
        assert_eq!((series.of("kept").get(), kept.get()), (2, 2));
        assert_eq!(series.of("gone").get(), 0);
        let mut seen = Vec::new();
        series.for_each(|labels, number| seen.push((*labels, number.get())));
        seen.sort_unstable();
        assert_eq!(seen, [("gone", 0), ("kept", 2)]);
    }
}
