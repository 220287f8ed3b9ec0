//! From what is wanted to what the maps hold: [`plan`] says what differs, [`apply`] is the
//! only writer.

mod apply;
mod image;
mod plan;
mod wanted;

pub use self::{
    apply::{apply, read},
    image::{Image, ServiceImage},
    plan::{Write, plan},
    wanted::{Resolved, WantedBackend, WantedService, wanted},
};
