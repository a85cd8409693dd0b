//! The devices: `nodes.toml`, read and checked.

use std::collections::BTreeMap;

use lingqu_tensor::Format;
use serde::Deserialize;

use crate::PlanError;

/// Devices of a cluster at most.
const DEVICES_MAX: usize = 4096;

/// What a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Duty {
    /// Attention, dense layers, shared experts and the KV cache: `lingqu serve`.
    Server,
    /// Routed experts: `lingqu worker`.
    Worker,
    /// Both in turns.
    Both,
}

impl Duty {
    pub fn serves(self) -> bool {
        self != Self::Worker
    }

    pub fn works(self) -> bool {
        self != Self::Server
    }
}

/// One device, in bytes, seconds and operations (two to a multiply-add).
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    pub name: String,
    pub duty: Duty,
    pub memory_bytes: u64,
    /// Kept free for the runtime, the driver and the system.
    pub reserve_bytes: u64,
    pub read_bytes_per_s: f64,
    pub bf16_flops: f64,
    pub fp8_flops: f64,
    pub int8_flops: f64,
    pub attention_flops: f64,
    pub flops_by_format: Vec<(Format, f64)>,
    /// Rows that are computed together; a quarter of that and fewer one by one.
    pub tile_rows: usize,
    /// Weights a second that are unpacked for tiles. Infinite where that costs nothing.
    pub unpack_weights_per_s: f64,
    /// Each way.
    pub link_bytes_per_s: f64,
    /// One way, small message.
    pub link_latency_s: f64,
    /// Reading weights and computing go on at the same time, as they do on accelerators.
    pub hides_reads: bool,
    /// What a layer costs besides: launches, synchronisation.
    pub layer_s: f64,
}

impl Device {
    /// Operations a second with weights of `format`.
    pub fn flops(&self, format: Format) -> f64 {
        if let Some(&(_, flops)) = self.flops_by_format.iter().find(|(f, _)| *f == format) {
            return flops;
        }
        match format {
            Format::F32 | Format::F16 | Format::Bf16 => self.bf16_flops,
            Format::Fp8E4M3 => self.fp8_flops,
            _ => self.int8_flops,
        }
    }
}

/// All devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Fleet {
    pub devices: Vec<Device>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    node: Vec<Node>,
}

/// As `docs/plan.md` describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    name: String,
    count: Option<i64>,
    duty: Option<Duty>,
    memory_gb: f64,
    reserve_gb: Option<f64>,
    bandwidth_gb_s: f64,
    bf16_tflops: f64,
    int8_tops: Option<f64>,
    fp8_tflops: Option<f64>,
    attention_tflops: Option<f64>,
    #[serde(default)]
    tops_by_format: BTreeMap<String, f64>,
    tile_rows: Option<i64>,
    unpack_gweights_s: Option<f64>,
    link_gb_s: Option<f64>,
    link_latency_us: Option<f64>,
    hides_reads: Option<bool>,
    layer_us: Option<f64>,
}

impl Fleet {
    /// Reads the text of a `nodes.toml`; `file` is for messages.
    ///
    /// # Errors
    /// Name the line, or the node and its field.
    pub fn parse(text: &str, file: &str) -> Result<Self, PlanError> {
        let toml = |problem: String| PlanError::Toml { file: file.into(), problem };
        let parsed: File = toml::from_str(text).map_err(|e| toml(e.to_string().trim_end().to_string()))?;
        if parsed.node.is_empty() {
            return Err(toml("has no [[node]]".into()));
        }
        let mut devices: Vec<Device> = Vec::new();
        for node in &parsed.node {
            let reader = Reader { file, node };
            if devices.iter().any(|d| d.name == node.name || d.name.starts_with(&format!("{}-", node.name))) {
                return Err(reader.error("name", "is used twice".into()));
            }
            let count = reader.count(DEVICES_MAX - devices.len())?;
            let device = reader.device()?;
            for number in 0..count {
                let name = if count == 1 { node.name.clone() } else { format!("{}-{number}", node.name) };
                devices.push(Device { name, ..device.clone() });
            }
        }
        let fleet = Self { devices };
        if !fleet.devices.iter().any(|d| d.duty.serves()) {
            return Err(toml("no node has the duty of a server: duty = \"server\" or \"both\"".into()));
        }
        Reader { file, node: &parsed.node[0] }.links(&parsed.node, fleet.devices.len())?;
        Ok(fleet)
    }
}

/// One node's fields with their checks.
struct Reader<'a> {
    file: &'a str,
    node: &'a Node,
}

impl Reader<'_> {
    fn error(&self, field: &'static str, problem: String) -> PlanError {
        PlanError::Node { file: self.file.into(), node: format!("node '{}'", self.node.name), field, problem }
    }

    fn count(&self, left: usize) -> Result<usize, PlanError> {
        let count = self.node.count.unwrap_or(1);
        match usize::try_from(count).ok().filter(|c| (1..=left).contains(c)) {
            Some(count) => Ok(count),
            None => Err(self.error("count", format!("{count} is not in 1..={left} ({DEVICES_MAX} devices in all)"))),
        }
    }

    fn above_zero(&self, field: &'static str, value: f64) -> Result<f64, PlanError> {
        match value.is_finite() && value > 0.0 && value < 1e9 {
            true => Ok(value),
            false => Err(self.error(field, format!("{value} is not a number above 0"))),
        }
    }

    fn not_negative(&self, field: &'static str, value: f64) -> Result<f64, PlanError> {
        match value.is_finite() && (0.0..1e9).contains(&value) {
            true => Ok(value),
            false => Err(self.error(field, format!("{value} is not a number from 0 on"))),
        }
    }

    fn device(&self) -> Result<Device, PlanError> {
        let node = self.node;
        if node.name.is_empty() {
            return Err(self.error("name", "is empty".into()));
        }
        let memory_gb = self.above_zero("memory_gb", node.memory_gb)?;
        let reserve_gb = self.not_negative("reserve_gb", node.reserve_gb.unwrap_or(memory_gb * 0.05))?;
        if reserve_gb >= memory_gb {
            return Err(self.error("reserve_gb", format!("{reserve_gb} is all of the memory")));
        }
        let tera = |field, value: Option<f64>, otherwise: f64| match value {
            Some(value) => self.above_zero(field, value).map(|tera| tera * 1e12),
            None => Ok(otherwise),
        };
        let bf16_flops = self.above_zero("bf16_tflops", node.bf16_tflops)? * 1e12;
        let mut flops_by_format = Vec::new();
        for (name, &tops) in &node.tops_by_format {
            let format = Format::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(name));
            let format = format.ok_or_else(|| self.error("tops_by_format", format!("'{name}' is no format")))?;
            flops_by_format.push((format, self.above_zero("tops_by_format", tops)? * 1e12));
        }
        let tile_rows = node.tile_rows.unwrap_or(1);
        let tile_rows = usize::try_from(tile_rows).ok().filter(|rows| (1..=1024).contains(rows));
        let tile_rows = tile_rows.ok_or_else(|| self.error("tile_rows", "is not in 1..=1024".into()))?;
        let unpack_weights_per_s = match node.unpack_gweights_s {
            Some(billions) => self.above_zero("unpack_gweights_s", billions)? * 1e9,
            None => f64::INFINITY,
        };
        Ok(Device {
            name: node.name.clone(),
            duty: node.duty.unwrap_or(Duty::Both),
            memory_bytes: (memory_gb * 1e9) as u64,
            reserve_bytes: (reserve_gb * 1e9) as u64,
            read_bytes_per_s: self.above_zero("bandwidth_gb_s", node.bandwidth_gb_s)? * 1e9,
            bf16_flops,
            fp8_flops: tera("fp8_tflops", node.fp8_tflops, bf16_flops)?,
            int8_flops: tera("int8_tops", node.int8_tops, bf16_flops)?,
            attention_flops: tera("attention_tflops", node.attention_tflops, bf16_flops)?,
            flops_by_format,
            tile_rows,
            unpack_weights_per_s,
            link_bytes_per_s: self.above_zero("link_gb_s", node.link_gb_s.unwrap_or(1.0))? * 1e9,
            link_latency_s: self.not_negative("link_latency_us", node.link_latency_us.unwrap_or(0.0))? * 1e-6,
            hides_reads: node.hides_reads.unwrap_or(true),
            layer_s: self.not_negative("layer_us", node.layer_us.unwrap_or(0.0))? * 1e-6,
        })
    }

    /// Several devices need links.
    fn links(&self, nodes: &[Node], devices: usize) -> Result<(), PlanError> {
        for node in nodes.iter().filter(|_| devices > 1) {
            let reader = Reader { file: self.file, node };
            let missing = |field| reader.error(field, "is missing: there are several devices".into());
            node.link_gb_s.ok_or_else(|| missing("link_gb_s"))?;
            node.link_latency_us.ok_or_else(|| missing("link_latency_us"))?;
        }
        Ok(())
    }
}
