//! `adapter_config.json`: what of PEFT's `LoraConfig` is read, and what is refused because it would change the answer.

use lingqu_backend::RANK_MAX;
use serde_json::{Map, Value};

use crate::ModelError;
use crate::config::fields::Fields;

/// Ranks and scales of the modules.
#[derive(Debug)]
pub struct AdapterConfig {
    file: String,
    rank: usize,
    alpha: f64,
    /// The scale is alpha / sqrt(rank), not alpha / rank (Kalajdzievski 2023).
    rank_stabilised: bool,
    /// Ranks and alphas of modules that have their own, by the end of their names.
    ranks: Vec<(String, usize)>,
    alphas: Vec<(String, f64)>,
}

/// Switches that must be off: each makes more, or something else, of the factors than `scale * B A`.
const OFF: [&str; 4] = ["use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"];
/// Lists and objects that must be empty, and why.
const EMPTY: [(&str, &str); 10] = [
    ("modules_to_save", "whole modules beside the factors are not supported"),
    ("layer_replication", "layers that repeat are not supported"),
    ("trainable_token_indices", "changed embeddings are not supported"),
    ("target_parameters", "changed parameters that are no linear layers (such as stacked experts) are not supported"),
    ("alora_invocation_tokens", "adapters that begin at a token are not supported"),
    ("arrow_config", "routed adapters are not supported"),
    ("use_bdlora", "factors in blocks are not supported"),
    ("kasa_config", "adapters that change the base model's own weights are not supported"),
    ("lora_ga_config", "adapters that change the base model's own weights are not supported"),
    ("monteclora_config", "adapters that are drawn at random are not supported"),
];
/// Ways of starting that change the base model's own weights, so that the factors do not fit the original.
const CHANGED_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

impl AdapterConfig {
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, ModelError> {
        let failed = |problem: String| ModelError::Config { file: file.into(), field: "JSON".into(), problem };
        let object: Map<String, Value> = serde_json::from_slice(text).map_err(|error| failed(error.to_string()))?;
        let f = Fields::json(file, "", &object);
        let kind = f.text("peft_type")?.unwrap_or_default();
        f.require("peft_type", kind == "LORA", || format!("is '{}', not 'LORA'", kind.escape_debug()))?;
        let bias = f.text("bias")?.unwrap_or_else(|| "none".into());
        f.require("bias", bias == "none", || format!("is '{}'; only 'none' is supported", bias.escape_debug()))?;
        for field in OFF {
            f.require(field, !f.flag(field)?.unwrap_or(false), || "is not supported".into())?;
        }
        for (field, why) in EMPTY {
            let empty = match object.get(field) {
                None | Some(Value::Null) => true,
                Some(Value::Array(list)) => list.is_empty(),
                Some(Value::Object(map)) => map.is_empty(),
                Some(_) => false,
            };
            f.require(field, empty, || why.into())?;
        }
        if let Some(Value::String(start)) = object.get("init_lora_weights") {
            let changed = CHANGED_BASE.iter().any(|name| start.starts_with(name));
            let problem = || format!("'{}' changes the base model's own weights", start.escape_debug());
            f.require("init_lora_weights", !changed, problem)?;
        }
        let rank = f.count("r")?;
        bounded(&f, "r", rank)?;
        let alpha = f.optional_number("lora_alpha")?.unwrap_or(8.0); // PEFT's own default
        let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
        if let Some(pattern) = pattern(&f, &object, "rank_pattern")? {
            let of = Fields::json(file, "rank_pattern.", pattern);
            for name in pattern.keys() {
                let rank = of.count(name)?;
                bounded(&of, name, rank)?;
                ranks.push((name.clone(), rank));
            }
        }
        if let Some(pattern) = pattern(&f, &object, "alpha_pattern")? {
            let of = Fields::json(file, "alpha_pattern.", pattern);
            for name in pattern.keys() {
                alphas.push((name.clone(), of.optional_number(name)?.unwrap_or(alpha)));
            }
        }
        let rank_stabilised = f.flag("use_rslora")?.unwrap_or(false);
        Ok(Self { file: file.into(), rank, alpha, rank_stabilised, ranks, alphas })
    }

    /// Rank and scale of a module.
    pub fn of(&self, module: &str) -> Result<(usize, f32), ModelError> {
        let rank = self.choose("rank_pattern", &self.ranks, module)?.unwrap_or(self.rank);
        let alpha = self.choose("alpha_pattern", &self.alphas, module)?.unwrap_or(self.alpha);
        let scale = alpha / if self.rank_stabilised { (rank as f64).sqrt() } else { rank as f64 };
        match (scale as f32).is_finite() {
            true => Ok((rank, scale as f32)),
            false => self.fail("lora_alpha", format!("{alpha} is not a scale")),
        }
    }

    /// The value whose pattern is the module's name or the end of it after a dot.
    fn choose<T: Copy>(&self, field: &str, values: &[(String, T)], module: &str) -> Result<Option<T>, ModelError> {
        let fits =
            |name: &str| module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'));
        let mut fitting = values.iter().filter(|(name, _)| fits(name));
        match (fitting.next(), fitting.next()) {
            (Some((a, _)), Some((b, _))) => {
                self.fail(field, format!("'{a}' and '{b}' both mean {module}; the file does not tell which goes first"))
            }
            (first, _) => Ok(first.map(|(_, value)| *value)),
        }
    }

    fn fail<T>(&self, field: &str, problem: String) -> Result<T, ModelError> {
        Err(ModelError::Config { file: self.file.clone(), field: field.into(), problem })
    }
}

fn bounded(f: &Fields, field: &str, rank: usize) -> Result<(), ModelError> {
    f.require(field, rank <= RANK_MAX, || format!("rank {rank} is above {RANK_MAX}"))
}

/// A field of values by module names. PEFT reads the names as regular expressions: those that are more than names are
/// refused.
fn pattern<'a>(
    f: &Fields,
    object: &'a Map<String, Value>,
    field: &str,
) -> Result<Option<&'a Map<String, Value>>, ModelError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => {
            let plain = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            if let Some(name) = map.keys().find(|name| name.is_empty() || !plain(name)) {
                return f.error(field, format!("'{}' is not the plain name of a module", name.escape_debug()));
            }
            Ok(Some(map))
        }
        Some(_) => f.error(field, "is not an object"),
    }
}
