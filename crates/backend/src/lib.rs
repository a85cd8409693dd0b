//! The seam: what a device must do for our models.
