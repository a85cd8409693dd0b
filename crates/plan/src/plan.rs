//! The plan as a whole.

use lingqu_placement::{Placement, PlacementInput, Worker, WorkerId, place};

use crate::traffic::Routes;
use crate::{Fleet, Inventory, NodeMemory, PlanError, Prediction, Traffic, Wire, Workload, speed};

/// A cluster that fits, and what to expect of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub inventory: Inventory,
    pub fleet: Fleet,
    pub workload: Workload,
    /// In the order of the fleet's devices.
    pub memory: Vec<NodeMemory>,
    /// A [`WorkerId`] is a place in the fleet's devices.
    pub placement: Placement,
    /// Of the busiest layer's busiest worker over the mean.
    pub imbalance: f64,
    /// In f32, bf16 and int8. Empty where nothing crosses.
    pub traffic: Vec<Traffic>,
    pub decode: Prediction,
    pub prefill: Prediction,
}

impl Plan {
    /// Plans `workload` of a model on devices.
    ///
    /// # Errors
    /// Name the field that is wrong, or say what does not fit and by how much.
    pub fn make(inventory: Inventory, fleet: Fleet, workload: Workload) -> Result<Self, PlanError> {
        workload.validate(inventory.config.context_tokens_max)?;
        let servers = fleet.devices.iter().filter(|d| d.duty.serves()).count();
        let workers = fleet.devices.iter().filter(|d| d.duty.works()).count();
        if workers == 0 && inventory.experts() > 0 {
            let problem = "no node is a worker, and the model has routed experts".into();
            return Err(PlanError::Workload { field: "duty", problem });
        }
        let base = |device| NodeMemory::without_experts(device, &inventory, &workload, (servers, workers));
        let mut memory = fleet.devices.iter().map(base).collect::<Result<Vec<_>, _>>()?;

        let input = placement_input(&inventory, &fleet, &memory, &workload);
        let placement = match inventory.experts() {
            0 => Placement::default(),
            _ => place(&input)?,
        };
        for (at, node) in memory.iter_mut().enumerate() {
            let worker = WorkerId(at as u32);
            node.expert_bytes = placement.bytes_of(worker, &input.expert_bytes);
            node.experts = placement.layers.iter().map(|layer| layer.experts_of(worker).len()).sum();
        }
        let imbalance = (0..placement.layers.len()).map(|l| placement.imbalance(&input, l)).fold(1.0, f64::max);

        let routes = Routes::new(&inventory, &fleet, &placement, &workload);
        let moe_layers = placement.layers.iter().filter(|layer| !layer.is_dense()).count();
        let first_moe = placement.layers.iter().position(|layer| !layer.is_dense());
        let asked = first_moe.map(|layer| routes.asked(layer)).unwrap_or_default();
        let rows = workload.sequences as f64 / servers as f64;
        let hidden = inventory.config.hidden;
        let crossing = [Wire::F32, Wire::Bf16, Wire::Int8]
            .map(|wire| Traffic::of(&asked, wire, hidden, rows, moe_layers))
            .into_iter()
            .filter(|traffic| traffic.pairs > 0.0);
        let (traffic, decode, prefill) = (
            crossing.collect(),
            speed::decode(&routes, &inventory, &fleet, &workload),
            speed::prefill(&routes, &inventory, &fleet, &workload),
        );
        Ok(Self { inventory, fleet, workload, memory, placement, imbalance, traffic, decode, prefill })
    }
}

/// Experts go to the devices that work, into what is left of their memory. Decoding is bound by memory: so is the speed
/// that they are given.
fn placement_input(inventory: &Inventory, fleet: &Fleet, memory: &[NodeMemory], workload: &Workload) -> PlacementInput {
    let works = |(at, device): (usize, &crate::Device)| {
        device.duty.works().then(|| Worker {
            id: WorkerId(at as u32),
            memory_bytes: memory[at].headroom_bytes(),
            speed: device.read_bytes_per_s,
        })
    };
    PlacementInput {
        experts: inventory.experts(),
        expert_bytes: inventory.expert_bytes(),
        workers: fleet.devices.iter().enumerate().filter_map(works).collect(),
        load: workload.load.clone(),
        redundancy: workload.redundancy,
    }
}
