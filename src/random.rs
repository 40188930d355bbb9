//! Random bytes from the operating system: for ids and for what a client may not guess.
//!
//! Asking costs a system call, so each thread asks for a stock and hands it out piece by piece. No
//! byte is handed out twice, and none is left behind in the stock.

use std::cell::RefCell;

use rustix::rand::{GetRandomFlags, getrandom};

/// The most that is fetched at once. Up to here the system fills a request whole.
const STOCK: usize = 256;

thread_local! {
    static RANDOM: RefCell<Stock> = const { RefCell::new(Stock { bytes: [0; STOCK], left: 0 }) };
}

/// Random bytes that nobody has had yet: the first `left`.
struct Stock {
    bytes: [u8; STOCK],
    left: usize,
}

impl Stock {
    fn take<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        const { assert!(COUNT <= STOCK) };
        if self.left < COUNT {
            fill(&mut self.bytes);
            self.left = STOCK;
        }
        self.left -= COUNT;
        let mut taken = [0; COUNT];
        taken.swap_with_slice(&mut self.bytes[self.left..self.left + COUNT]);
        taken
    }
}

/// So many fresh random bytes.
pub fn bytes<const COUNT: usize>() -> [u8; COUNT] {
    RANDOM.with_borrow_mut(Stock::take)
}

fn fill(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        // It fails only when interrupted by a signal, before which it has filled nothing.
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty()).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_of_the_stock_is_handed_out_twice() {
        let mut stock = Stock { bytes: [0; STOCK], left: 0 };
        let mut pieces: Vec<[u8; 16]> = Vec::new();
        for round in 0..100 {
            pieces.push(stock.take());
            // Sizes that don't divide the stock.
            let _: [u8; 12] = stock.take();
            assert!(stock.bytes[stock.left..].iter().all(|&byte| byte == 0), "round {round}");
        }
        pieces.sort_unstable();
        pieces.dedup();
        assert_eq!(pieces.len(), 100);
    }
}
