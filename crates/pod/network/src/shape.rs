//! How fast a pod may send and get, by token buckets on the host, where the pod can't touch them.
//!
//! What goes to a pod leaves the host's end of its link, whose queue is a bucket. What comes from it has no queue there: it is led
//! to a device of the pod's own (an `ifb`), leaves that by a bucket, and comes back as if it had just arrived. Packets wait
//! for a moment before they are dropped, so that TCP finds its speed. Both are the kernel's: they stand while this program
//! doesn't run. The queue goes with the link, the device by [`remove`].

use crate::{PodNetworkRequest, link};
use anyhow::{Context, bail};
use futures::StreamExt;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::{Handle, LinkIfb};

/// How devices' names begin.
pub const DEVICE_PREFIX: &str = "kbw";
/// Packets that a pod sends are of every protocol.
const ETH_P_ALL: u16 = 3;
/// What may pass at once, as a part of a second; within bounds: a packet has to fit, and a bucket should hold.
const BURST_PARTS: u64 = 20;
const BURST: std::ops::RangeInclusive<u64> = 16 << 10..=4 << 20;
/// How long a packet may wait, as upstream's plug-in has it: 25 ms.
const WAIT_PARTS: u64 = 40;
/// Bytes that may wait at most.
const QUEUE: u64 = 64 << 20;

/// Attributes of `linux/pkt_sched.h`.
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
const ETHERNET: u8 = 1;

/// A token bucket, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    /// A second.
    rate: u64,
    burst: u32,
    /// What may be on its way: the burst and what waits.
    limit: u32,
}

impl Bucket {
    fn of(bits: u64) -> Bucket {
        let rate = (bits / 8).max(1);
        let burst = (rate / BURST_PARTS).clamp(*BURST.start(), *BURST.end());
        let limit = (rate / WAIT_PARTS).min(QUEUE) + burst;
        // Both are far below what a number of 32 bits holds.
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Bucket {
            rate,
            burst: number(burst),
            limit: number(limit),
        }
    }

    /// `struct tc_tbf_qopt`: two rates of twelve bytes (the second unused), limit, buffer and MTU (told by an attribute).
    fn options(self) -> Vec<TcOption> {
        let mut parms = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
        parms.extend(u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        parms.extend([0; 12]);
        parms.extend(self.limit.to_ne_bytes());
        parms.extend([0; 8]);
        let option = |kind, bytes: Vec<u8>| TcOption::Other(DefaultNla::new(kind, bytes));
        let mut options = vec![
            option(TBF_PARMS, parms),
            option(TBF_BURST, self.burst.to_ne_bytes().to_vec()),
        ];
        if self.rate > u64::from(u32::MAX) {
            options.push(option(TBF_RATE64, self.rate.to_ne_bytes().to_vec()));
        }
        options
    }
}

/// The device of a pod's link.
fn device(link: &str) -> String {
    let own = link.strip_prefix(crate::ports::LINK_PREFIX).unwrap_or(link);
    format!("{DEVICE_PREFIX}{own}")
}

/// Bounds what goes by a link that has just been made.
pub async fn apply(handle: &Handle, link: &str, request: &PodNetworkRequest) -> anyhow::Result<()> {
    if request.ingress_bandwidth > 0 {
        let index = link::must_index(handle, link).await?;
        let bucket = Bucket::of(request.ingress_bandwidth);
        queue(handle, index, bucket)
            .await
            .context("kubernetes.io/ingress-bandwidth can't be enforced (has the kernel sch_tbf?)")?;
    }
    if request.egress_bandwidth > 0 {
        let bucket = Bucket::of(request.egress_bandwidth);
        lead(handle, link, bucket).await.context(
            "kubernetes.io/egress-bandwidth can't be enforced (has the kernel ifb, cls_u32 and act_mirred?)",
        )?;
    }
    Ok(())
}

async fn lead(handle: &Handle, link: &str, bucket: Bucket) -> anyhow::Result<()> {
    let name = device(link);
    link::delete(handle, &name).await?;
    let added = handle.link().add(LinkIfb::new(&name).build()).execute().await;
    added.with_context(|| format!("create the device {name}"))?;
    let (from, to) = (
        link::must_index(handle, link).await?,
        link::must_index(handle, &name).await?,
    );
    queue(handle, to, bucket).await?;
    link::up(handle, to).await.with_context(|| format!("{name} up"))?;
    let mut queues = handle.qdisc();
    let arriving = queues.add(i32::try_from(from)?).ingress().execute().await;
    arriving.context("take what comes by the link")?;
    let filter = handle.traffic_filter(i32::try_from(from)?).add();
    let filter = filter
        .parent(0xffff_0000)
        .protocol(ETH_P_ALL.to_be())
        .redirect(to)
        .context("lead it to the device")?;
    filter.execute().await.context("lead it to the device")
}

/// The queue by which a link sends.
async fn queue(handle: &Handle, index: u32, bucket: Bucket) -> anyhow::Result<()> {
    let mut message = TcMessage::with_index(i32::try_from(index)?);
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![TcAttribute::Kind("tbf".into()), TcAttribute::Options(bucket.options())];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            bail!("token bucket: {}", error.to_io());
        }
    }
    Ok(())
}

/// Gives up the device of a link, if it has one.
pub async fn remove(handle: &Handle, link: &str) -> anyhow::Result<()> {
    link::delete(handle, &device(link)).await
}

/// Gives up devices of links that aren't among these.
pub async fn keep(handle: &Handle, links: &[String]) -> anyhow::Result<()> {
    let keep: Vec<String> = links.iter().map(|link| device(link)).collect();
    for name in link::names_with_prefix(handle, DEVICE_PREFIX).await? {
        if !keep.contains(&name) {
            link::delete(handle, &name).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::Nla;

    #[test]
    fn buckets_hold_a_packet_and_a_moment() {
        let of = |bits| {
            let Bucket { rate, burst, limit } = Bucket::of(bits);
            (rate, burst, limit)
        };
        assert_eq!(of(1_000), (125, 16 << 10, (16 << 10) + 3));
        assert_eq!(of(10_000_000), (1_250_000, 62_500, 93_750));
        assert_eq!(of(1_000_000_000), (125_000_000, 4 << 20, (4 << 20) + 3_125_000));
        assert_eq!(of(1_000_000_000_000_000).2, (4 << 20) + (64 << 20));
        assert!(device("kls0123456789ab").len() < 16);
    }

    #[test]
    fn large_rates_have_an_attribute_of_their_own() {
        let kinds = |bits| {
            let options = Bucket::of(bits).options();
            options.iter().map(|o| (o.kind(), o.value_len())).collect::<Vec<_>>()
        };
        assert_eq!(kinds(1_000_000), [(TBF_PARMS, 36), (TBF_BURST, 4)]);
        assert_eq!(kinds(100_000_000_000)[2..], [(TBF_RATE64, 8)]);
    }
}
