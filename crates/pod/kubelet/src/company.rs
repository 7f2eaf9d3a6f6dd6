//! What kubelets that run in one process have in common, so that thousands of them fit into it: watches, the number of requests at
//! a time, and what they count.

use crate::metrics::Metrics;
use keelson_client::Together;
use std::fmt;
use std::sync::Arc;

pub struct Company {
    pub(crate) together: Arc<Together>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Company {
    /// So many requests at a time, watches aside.
    pub fn new(seats: usize) -> Arc<Company> {
        Arc::new(Company {
            together: Together::new(seats),
            metrics: Arc::default(),
        })
    }

    /// For others who look at what these kubelets look at.
    pub fn together(&self) -> Arc<Together> {
        self.together.clone()
    }
}

impl fmt::Debug for Company {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Company")
    }
}
