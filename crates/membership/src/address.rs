//! `etcd://HOST:PORT[,HOST:PORT]/NAME`: where etcd is, and which cluster in it is meant.

use std::fmt;
use std::str::FromStr;

use crate::EtcdError;

const ENDPOINTS_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `HOST:PORT` each.
    pub endpoints: Vec<String>,
    pub name: String,
}

impl FromStr for Address {
    type Err = EtcdError;

    fn from_str(text: &str) -> Result<Self, EtcdError> {
        let parse = || {
            let (endpoints, name) = text.strip_prefix("etcd://")?.split_once('/')?;
            let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
            let is_endpoint = |endpoint: &String| {
                let of_host = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
                let (host, port) = endpoint.rsplit_once(':')?;
                (!host.is_empty() && host.chars().all(of_host) && port.parse::<u16>().is_ok()).then_some(())
            };
            let of_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let is_sound = endpoints.len() <= ENDPOINTS_MAX
                && endpoints.iter().all(|endpoint| is_endpoint(endpoint).is_some())
                && (1..=NAME_BYTES_MAX).contains(&name.len())
                && name.chars().all(of_name);
            is_sound.then(|| Self { endpoints, name: name.to_owned() })
        };
        parse().ok_or_else(|| EtcdError::Address(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}/{}", self.endpoints.join(","), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_whole_or_refused() {
        let check = |text: &str, endpoints: &[&str]| {
            let parsed = text.parse::<Address>();
            match endpoints {
                [] => assert!(parsed.is_err(), "{text}"),
                endpoints => {
                    let parsed = parsed.unwrap_or_else(|e| panic!("{e}"));
                    assert_eq!((parsed.endpoints.as_slice(), parsed.to_string().as_str()), (&*owned(endpoints), text));
                }
            }
        };
        fn owned(texts: &[&str]) -> Vec<String> {
            texts.iter().map(|text| (*text).to_owned()).collect()
        }
        check("etcd://10.0.0.1:2379/r1", &["10.0.0.1:2379"]);
        check("etcd://a:1,b-2.c:2,[::1]:3/r1.prod_2-x", &["a:1", "b-2.c:2", "[::1]:3"]);
        let long = "n".repeat(65);
        for bad in ["etcd://a:1", "etcd://a:1/", "etcd:///r1", "etcd://a/r1", "etcd://a:1,/r1", "etcd://a:70000/r1"] {
            check(bad, &[]);
        }
        for bad in
            ["http://a:1/r1", "etcd://a:1/r1/x", "etcd://a b:1/r1", "etcd://u@a:1/r1", &format!("etcd://a:1/{long}")]
        {
            check(bad, &[]);
        }
        check(&format!("etcd://{}/r1", vec!["a:1"; 17].join(",")), &[]);
    }
}
