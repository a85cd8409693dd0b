//! HMAC-SHA-256 (RFC 2104).

use sha2::{Digest, Sha256};

const BLOCK_BYTES: usize = 64;
pub(crate) const MAC_BYTES: usize = 32;

/// Of the parts one after the other, each with its length before it, so that no two lists of parts are alike.
pub(crate) fn mac_of_parts(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_BYTES] {
    let lengths: Vec<[u8; 8]> = parts.iter().map(|part| (part.len() as u64).to_le_bytes()).collect();
    let all: Vec<&[u8]> = lengths.iter().zip(parts).flat_map(|(length, part)| [length.as_slice(), part]).collect();
    mac(key, &all)
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    match key.len() <= BLOCK_BYTES {
        true => block[..key.len()].copy_from_slice(key),
        false => block[..MAC_BYTES].copy_from_slice(&Sha256::digest(key)),
    }
    let mut inner = Sha256::new_with_prefix(block.map(|b| b ^ 0x36));
    parts.iter().for_each(|part| inner.update(part));
    let mut outer = Sha256::new_with_prefix(block.map(|b| b ^ 0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}

/// Takes the same time wherever the two differ.
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        let check = |key: &[u8], data: &[u8], expected: &str| {
            let hex: String = mac(key, &[data]).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, expected);
            assert_eq!(mac(key, &[&data[..3], &data[3..]]), mac(key, &[data]));
        };
        // RFC 4231, test cases 1, 2 and 6.
        check(&[0x0b; 20], b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        let data = b"what do ya want for nothing?";
        check(b"Jefe", data, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let data = b"Test Using Larger Than Block-Size Key - Hash Key First";
        check(&[0xaa; 131], data, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(mac_of_parts(b"key", &[b"ab", b"c"]), mac_of_parts(b"key", &[b"a", b"bc"]));
        assert!(equal(b"same", b"same") && !equal(b"same", b"sane") && !equal(b"same", b"sam"));
    }
}
