//! How many client connections a listener may have, in all and of one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The counts of one listener, and what they may not exceed.
///
/// One short lock per connection begun and ended; with no limit per address there is no table.
#[derive(Debug)]
pub struct Limits {
    connections: usize,
    per_address: usize,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    /// Never an entry of 0, so it holds no more addresses than there are connections.
    by_address: HashMap<IpAddr, usize>,
}

/// Why a connection was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverLimit {
    /// `limits.connections` are open.
    Connections,
    /// `limits.connections_per_ip` of this address are open.
    PerAddress,
}

impl OverLimit {
    /// As it stands in a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connections => "listener_connections",
            Self::PerAddress => "connections_per_ip",
        }
    }
}

impl Limits {
    /// Limits of so many connections in all and of one address; 0: no limit.
    pub fn new(connections: usize, per_address: usize) -> Self {
        Self { connections, per_address, counts: Arc::default() }
    }

    /// Other limits for the same connections: those that are open count on.
    ///
    /// Who came while there was no limit per address does not count for his.
    #[must_use]
    pub fn renewed(&self, connections: usize, per_address: usize) -> Self {
        Self { connections, per_address, counts: Arc::clone(&self.counts) }
    }

    /// The connections that are open.
    pub fn open(&self) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).all
    }

    /// Counts a connection of `address` until the guard is dropped.
    ///
    /// # Errors
    ///
    /// A limit is reached: the connection is to be closed.
    pub fn admit(&self, address: IpAddr) -> Result<Admission, OverLimit> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        self.room(&counts)?;
        let address = self.count_address(&mut counts, address)?;
        counts.all += 1;
        Ok(Admission { counts: Arc::clone(&self.counts), address })
    }

    /// Counts a connection whose client is not known yet; [`name`](Self::name) is to follow.
    ///
    /// # Errors
    ///
    /// [`OverLimit::Connections`]: the connection is to be closed.
    pub fn admit_unnamed(&self) -> Result<Admission, OverLimit> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        self.room(&counts)?;
        counts.all += 1;
        Ok(Admission { counts: Arc::clone(&self.counts), address: None })
    }

    /// Counts a connection that was admitted unnamed as one of `address`, too.
    ///
    /// # Errors
    ///
    /// [`OverLimit::PerAddress`]: the connection is to be closed.
    pub fn name(&self, admission: &mut Admission, address: IpAddr) -> Result<(), OverLimit> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        admission.address = self.count_address(&mut counts, address)?;
        Ok(())
    }

    fn room(&self, counts: &Counts) -> Result<(), OverLimit> {
        let full = self.connections != 0 && counts.all >= self.connections;
        if full { Err(OverLimit::Connections) } else { Ok(()) }
    }

    /// The address, if it counts.
    fn count_address(
        &self,
        counts: &mut Counts,
        address: IpAddr,
    ) -> Result<Option<IpAddr>, OverLimit> {
        if self.per_address == 0 {
            return Ok(None);
        }
        let count = counts.by_address.entry(address).or_insert(0);
        if *count >= self.per_address {
            return Err(OverLimit::PerAddress);
        }
        *count += 1;
        Ok(Some(address))
    }
}

/// A connection that counts; dropping it takes it off.
#[derive(Debug)]
pub struct Admission {
    counts: Arc<Mutex<Counts>>,
    address: Option<IpAddr>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(address) = self.address
            && let Some(count) = counts.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, last).into()
    }

    #[test]
    fn each_limit_holds_and_is_given_back() {
        let limits = Limits::new(3, 2);
        let first = limits.admit(address(1)).unwrap();
        let _second = limits.admit(address(1)).unwrap();
        assert_eq!(limits.admit(address(1)).unwrap_err(), OverLimit::PerAddress);
        let _third = limits.admit(address(2)).unwrap();
        assert_eq!(limits.admit(address(2)).unwrap_err(), OverLimit::Connections);
        drop(first);
        assert!(limits.admit(address(1)).is_ok());
    }

    #[test]
    fn who_is_named_later_counts_in_all_at_once_and_by_address_then() {
        let limits = Limits::new(2, 1);
        let mut one = limits.admit_unnamed().unwrap();
        let mut two = limits.admit_unnamed().unwrap();
        assert_eq!(limits.admit_unnamed().unwrap_err(), OverLimit::Connections);
        limits.name(&mut one, address(1)).unwrap();
        assert_eq!(limits.name(&mut two, address(1)), Err(OverLimit::PerAddress));
        drop(one);
        limits.name(&mut two, address(1)).unwrap();
        drop(two);
        let counts = limits.counts.lock().unwrap();
        assert_eq!((counts.all, counts.by_address.len()), (0, 0));
    }

    #[test]
    fn zero_is_no_limit_and_keeps_no_addresses() {
        let limits = Limits::new(0, 0);
        let _held: Vec<Admission> = (0..50).map(|_| limits.admit(address(1)).unwrap()).collect();
        assert!(limits.counts.lock().unwrap().by_address.is_empty());
    }

    #[test]
    fn an_address_over_its_limit_leaves_no_trace() {
        let limits = Limits::new(0, 1);
        drop(limits.admit(address(1)).unwrap());
        assert!(limits.counts.lock().unwrap().by_address.is_empty());
        assert_eq!(limits.counts.lock().unwrap().all, 0);
    }
}
