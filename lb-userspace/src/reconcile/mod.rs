//! From what is wanted to what the maps hold: [`plan`] says what differs, [`apply`] is the
//! only writer; [`repairs`] mends what others changed.

mod apply;
mod drift;
mod image;
mod plan;
mod wanted;

pub use self::{
    apply::{apply, look, read},
    drift::{describe, repairs},
    image::{Filter, Image, ServiceImage},
    plan::{InUse, Write, plan},
    wanted::{Resolved, WantedBackend, WantedService, wanted},
};
