//! The generated protobuf messages, under the module tree that the generator's references expect. Nothing here is written by
//! hand: `cargo run -p cairn-tests --bin generate` writes `gen/`, and a law test compares it with the `.proto` files.
#![allow(missing_docs, clippy::all)]

pub mod cairn {
    pub mod record {
        pub mod v1 {
            include!("gen/cairn.record.v1.rs");
        }
    }
    pub mod peer {
        pub mod v1 {
            include!("gen/cairn.peer.v1.rs");
        }
    }
    pub mod v1 {
        include!("gen/cairn.v1.rs");
    }
}

pub mod google {
    pub mod rpc {
        include!("gen/google.rpc.rs");
    }
}
