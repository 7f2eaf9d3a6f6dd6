//! How components reach the cluster: in-process or kubeconfig clients, informers, work queues, leader election, events.
