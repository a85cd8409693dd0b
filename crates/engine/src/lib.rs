//! The step loop over scheduler, KV cache, model and sampler.
