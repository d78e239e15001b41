use super::{observed::Observed, *};
use bulkhead_api::objects::block_name;
use std::{collections::BTreeSet, path::Path};

fn nets(text: &[&str]) -> Vec<IpNetwork> {
    text.iter().map(|t| t.parse().unwrap()).collect()
}

async fn node(dir: &Path, name: &str) -> Ipam<ClaimFiles> {
    Ipam::load(ClaimFiles::new(dir.into()).unwrap(), name).await.unwrap()
}

#[tokio::test]
async fn an_address_of_each_family_the_ranges_have() {
    let dir = tempfile::tempdir().unwrap();
    let mut ipam = node(dir.path(), "n1").await;
    let both = ipam.allocate("web", &nets(&["10.1.0.0/24", "fd00:1::/64"]), &[]).await.unwrap();
    assert_eq!(both, ["10.1.0.1".parse::<IpAddr>().unwrap(), "fd00:1::1".parse().unwrap()]);
    assert_eq!(ipam.allocate("six", &nets(&["fd00:2::/64"]), &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn exhaustion_names_partition_and_ranges_and_gives_back_the_other_family() {
    let dir = tempfile::tempdir().unwrap();
    let mut ipam = node(dir.path(), "n1").await;
    let ranges = nets(&["10.1.0.0/28", "fd00:1::/127"]);
    ipam.allocate("web", &ranges, &[]).await.unwrap();
    let error = ipam.allocate("web", &ranges, &[]).await.unwrap_err().to_string();
    assert!(error.contains("web") && error.contains("IPv6") && error.contains("fd00:1::/127"), "{error}");
    // 14 others fit still: the failed attempt kept none of them.
    for _ in 0..14 {
        ipam.allocate("web", &ranges[..1], &[]).await.unwrap();
    }
    let error = ipam.allocate("web", &ranges[..1], &[]).await.unwrap_err().to_string();
    assert!(error.contains("IPv4") && error.contains("10.1.0.0/28"), "{error}");
}

#[tokio::test]
async fn a_partition_without_ranges_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        node(dir.path(), "n1").await.allocate("web", &[], &[]).await,
        Err(IpamError::NoRanges { .. })
    ));
}

#[tokio::test]
async fn blocks_are_claimed_in_order_and_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let ranges = nets(&["10.1.0.0/25"]);
    let mut one = node(dir.path(), "n1").await;
    let mut two = node(dir.path(), "n2").await;
    one.allocate("web", &ranges, &[]).await.unwrap();
    two.allocate("web", &ranges, &[]).await.unwrap();
    assert_eq!(one.blocks().keys().copied().collect::<Vec<_>>(), nets(&["10.1.0.0/26"]));
    assert_eq!(two.blocks().keys().copied().collect::<Vec<_>>(), nets(&["10.1.0.64/26"]));
    let again = node(dir.path(), "n2").await;
    assert_eq!(again.blocks(), two.blocks());
}

#[tokio::test]
async fn a_full_block_is_followed_by_the_next_free_one() {
    let dir = tempfile::tempdir().unwrap();
    let ranges = nets(&["10.1.0.0/24"]);
    let (mut one, mut two) = (node(dir.path(), "n1").await, node(dir.path(), "n2").await);
    one.allocate("web", &ranges, &[]).await.unwrap();
    two.allocate("web", &ranges, &[]).await.unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        assert!(seen.insert(one.allocate("web", &ranges, &[]).await.unwrap()));
    }
    assert_eq!(one.blocks().keys().copied().collect::<Vec<_>>(), nets(&["10.1.0.0/26", "10.1.0.128/26"]));
}

#[tokio::test]
async fn released_blocks_are_free_for_others_and_used_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = node(dir.path(), "n1").await;
    let web = one.allocate("web", &nets(&["10.1.0.0/26"]), &[]).await.unwrap();
    one.allocate("pay", &nets(&["10.2.0.0/26"]), &[]).await.unwrap();
    web.into_iter().for_each(|a| one.free(a));
    assert_eq!(one.blocks_in_use().keys().copied().collect::<Vec<_>>(), nets(&["10.2.0.0/26"]));
    assert_eq!(one.release_empty_blocks(&Default::default()).await.unwrap(), nets(&["10.1.0.0/26"]));
    assert_eq!(*one.blocks(), one.blocks_in_use());
    assert!(!dir.path().join(format!("{}.yaml", block_name("10.1.0.0/26".parse().unwrap()))).exists());
    let mut two = node(dir.path(), "n2").await;
    two.allocate("web", &nets(&["10.1.0.0/26"]), &[]).await.unwrap();
    assert!(two.allocate("pay", &nets(&["10.2.0.0/26"]), &[]).await.is_err());
}

#[test]
fn nodes_that_race_for_blocks_never_get_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let ranges = nets(&["10.1.0.0/21", "fd00:1::/117"]);
    let claim = |name: String| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut ipam = node(dir.path(), &name).await;
            let mut addresses = Vec::new();
            for _ in 0..200 {
                addresses.extend(ipam.allocate("web", &ranges, &[]).await.unwrap());
            }
            (addresses, ipam.blocks().clone())
        })
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|n| scope.spawn(move || claim(format!("n{n}")))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let addresses: Vec<_> = results.iter().flat_map(|(a, _)| a).collect();
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len());
    let blocks: Vec<_> = results.iter().flat_map(|(_, b)| b.keys()).collect();
    assert_eq!(blocks.iter().collect::<BTreeSet<_>>().len(), blocks.len());
}

#[tokio::test]
async fn a_fixed_address_is_given_to_one_pod_until_it_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, mut two) = (node(dir.path(), "n1").await, node(dir.path(), "n2").await);
    let fixed: Vec<IpAddr> = vec!["10.1.0.7".parse().unwrap(), "fd00:1::7".parse().unwrap()];
    one.take("web", &fixed).await.unwrap();
    let error = two.take("web", &fixed).await.unwrap_err().to_string();
    assert!(error.contains("10.1.0.7 is held by block 10.1.0.7/32 of node n1"), "{error}");
    assert!(matches!(one.take("web", &fixed[..1]).await, Err(IpamError::Held { .. })));
    // It is announced like any block: as a host route.
    assert_eq!(one.blocks().keys().copied().collect::<Vec<_>>(), nets(&["10.1.0.7/32", "fd00:1::7/128"]));
    fixed.iter().for_each(|a| one.free(*a));
    one.release_empty_blocks(&Default::default()).await.unwrap();
    two.take("web", &fixed).await.unwrap();
}

#[tokio::test]
async fn what_failed_half_way_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, mut two) = (node(dir.path(), "n1").await, node(dir.path(), "n2").await);
    let fixed: Vec<IpAddr> = vec!["10.1.0.7".parse().unwrap(), "fd00:1::7".parse().unwrap()];
    two.take("web", &fixed[1..]).await.unwrap();
    assert!(one.take("web", &fixed).await.is_err());
    one.release_empty_blocks(&Default::default()).await.unwrap();
    two.take("web", &fixed[..1]).await.unwrap();
}

/// Real claims, with one block whose release is never heard of again: on its way there, or back.
struct Lossy {
    claims: ClaimFiles,
    block: IpNetwork,
    /// 0: nothing is lost, 1: the answer, 2: the request.
    loses: std::sync::atomic::AtomicU8,
}

impl BlockClaims for Lossy {
    async fn claim(&self, block: &IPBlockSpec) -> Result<Claim, ClaimError> {
        self.claims.claim(block).await
    }

    async fn release(&self, block: &IPBlockSpec) -> Result<(), ClaimError> {
        let loses = self.loses.load(std::sync::atomic::Ordering::Relaxed);
        if block.cidr != self.block || loses != 2 {
            self.claims.release(block).await?;
        }
        if block.cidr != self.block || loses == 0 {
            return Ok(());
        }
        Err(ClaimError::Api { what: "IPBlock".into(), reason: "no answer".into() })
    }

    async fn tidy(&self, node: &str) -> Result<(), ClaimError> {
        self.claims.tidy(node).await
    }

    async fn get(&self, cidr: IpNetwork) -> Result<Option<IPBlockSpec>, ClaimError> {
        self.claims.get(cidr).await
    }

    async fn list(&self) -> Result<Vec<IPBlockSpec>, ClaimError> {
        self.claims.list().await
    }

    async fn of_node(&self, node: &str) -> Result<Vec<IPBlockSpec>, ClaimError> {
        self.claims.of_node(node).await
    }

    fn remembered(&self) -> Vec<IPBlockSpec> {
        self.claims.remembered()
    }

    fn remember_lost(&self, block: &IPBlockSpec) {
        self.claims.remember_lost(block);
    }
}

/// Two blocks of one node, of which the first is released without an answer.
async fn unanswered(dir: &Path, loses: u8) -> Ipam<Lossy> {
    let claims = ClaimFiles::new(dir.into()).unwrap();
    let lossy = Lossy { claims, block: nets(&["10.1.0.0/26"])[0], loses: loses.into() };
    let mut one = Ipam::load(lossy, "n1").await.unwrap();
    let mut addresses = one.allocate("web", &nets(&["10.1.0.0/24"]), &[]).await.unwrap();
    addresses.extend(one.allocate("pay", &nets(&["10.2.0.0/26"]), &[]).await.unwrap());
    addresses.into_iter().for_each(|a| one.free(a));
    one.release_empty_blocks(&Default::default()).await.unwrap_err();
    assert_eq!(*one.blocks(), BTreeMap::new(), "nothing that may be another's is announced");
    assert!(
        !dir.join(format!("{}.yaml", block_name(nets(&["10.2.0.0/26"])[0]))).exists(),
        "the others go on"
    );
    one.claims.loses = 0.into();
    one
}

#[tokio::test]
async fn a_block_that_was_released_without_an_answer_is_another_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = unanswered(dir.path(), 1).await;
    let mut two = node(dir.path(), "n2").await;
    let ranges = nets(&["10.1.0.0/24"]);
    let theirs = two.allocate("web", &ranges, &[]).await.unwrap();
    let ours = one.allocate("web", &ranges, &[]).await.unwrap();
    assert_eq!(theirs, ["10.1.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(ours, ["10.1.0.64".parse::<IpAddr>().unwrap()]);
    assert_eq!(one.release_leaving().await.unwrap(), nets(&["10.1.0.0/26"]));
    assert_eq!(node(dir.path(), "n2").await.blocks().len(), 1, "their claim stands");
}

#[tokio::test]
async fn a_block_whose_release_was_lost_is_tried_again_or_claimed_anew() {
    for used_again in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut one = unanswered(dir.path(), 2).await;
        if used_again {
            let address = one.allocate("web", &nets(&["10.1.0.0/24"]), &[]).await.unwrap();
            assert_eq!(address, ["10.1.0.1".parse::<IpAddr>().unwrap()]);
        }
        assert_eq!(one.release_leaving().await.unwrap().len(), usize::from(!used_again));
        assert_eq!(node(dir.path(), "n1").await.blocks().len(), usize::from(used_again));
    }
}

#[tokio::test]
async fn a_fixed_address_whose_release_was_lost_is_claimed_anew() {
    let dir = tempfile::tempdir().unwrap();
    let fixed: IpAddr = "10.1.0.7".parse().unwrap();
    let claims = ClaimFiles::new(dir.path().into()).unwrap();
    let mut one = Ipam::load(Lossy { claims, block: fixed.into(), loses: 1.into() }, "n1").await.unwrap();
    one.take("web", &[fixed]).await.unwrap();
    one.free(fixed);
    one.release_empty_blocks(&Default::default()).await.unwrap_err();
    one.take("web", &[fixed]).await.unwrap();
    assert_eq!(one.release_leaving().await.unwrap(), []);
    assert!(node(dir.path(), "n2").await.take("web", &[fixed]).await.is_err());
}

#[tokio::test]
async fn a_claim_that_was_made_without_an_answer_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = Ipam::load(Observed::new(dir.path()), "n1").await.unwrap();
    one.claims.seen.lock().unwrap().answer_is_lost = true;
    one.allocate("web", &nets(&["10.1.0.0/24"]), &[]).await.unwrap_err();
    one.take("web", &["10.1.1.7".parse().unwrap()]).await.unwrap_err();
    assert_eq!((one.claims.list().await.unwrap().len(), one.blocks().len()), (2, 0));
    assert!(one.is_leaving());
    one.release_leaving().await.unwrap();
    assert_eq!(one.claims.list().await.unwrap(), []);
}

#[tokio::test]
async fn what_is_remembered_and_another_has_is_none_of_ours_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    node(dir.path(), "n2").await.allocate("web", &nets(&["10.1.0.0/27"]), &[]).await.unwrap();
    let claims = Observed::new(dir.path());
    let spec = |cidr: &str, node: &str| IPBlockSpec {
        cidr: cidr.parse().unwrap(),
        partition: "web".into(),
        node: node.into(),
    };
    claims.seen.lock().unwrap().remembered =
        vec![spec("10.1.0.0/26", "n1"), spec("10.1.0.64/26", "n1"), spec("10.1.0.128/26", "")];
    let one = Ipam::load(claims, "n1").await.unwrap();
    assert_eq!(one.blocks().keys().copied().collect::<Vec<_>>(), nets(&["10.1.0.64/26"]));
    assert_eq!(
        one.lost().keys().copied().collect::<Vec<_>>(),
        nets(&["10.1.0.0/26", "10.1.0.128/26"]),
        "of another's, and lost before"
    );
    assert_eq!(one.claims.seen.lock().unwrap().remembered_lost[1], spec("10.1.0.0/26", "n1"));
}

#[tokio::test]
async fn no_block_is_cut_from_what_is_kept_for_reservations() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = node(dir.path(), "n1").await;
    let (ranges, fixed) = (nets(&["10.1.0.0/25"]), nets(&["10.1.0.0/28"]));
    one.take("web", &["10.1.0.7".parse().unwrap()]).await.unwrap();
    let address = one.allocate("web", &ranges, &fixed).await.unwrap();
    assert_eq!(address, ["10.1.0.64".parse::<IpAddr>().unwrap()]);
    one.free("10.1.0.7".parse().unwrap());
    let all = nets(&["10.1.0.0/28"]);
    assert!(matches!(one.allocate("web", &all, &fixed).await, Err(IpamError::Exhausted { .. })));
}

#[tokio::test]
async fn what_is_kept_for_reservations_may_be_larger_than_anybody_can_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = node(dir.path(), "n1").await;
    let (ranges, fixed) = (nets(&["fd00:66::/48"]), nets(&["fd00:66::/64"]));
    let address = one.allocate("web", &ranges, &fixed).await.unwrap();
    assert_eq!(address, ["fd00:66:0:1::".parse::<IpAddr>().unwrap()]);
    let all = one.allocate("pay", &fixed, &fixed).await;
    assert!(matches!(all, Err(IpamError::Exhausted { .. })));
}

#[tokio::test]
async fn a_claim_of_another_may_be_larger_than_anybody_can_count() {
    let dir = tempfile::tempdir().unwrap();
    let claims = ClaimFiles::new(dir.path().into()).unwrap();
    let large =
        |cidr: &str| IPBlockSpec { cidr: cidr.parse().unwrap(), partition: "web".into(), node: "n2".into() };
    claims.claim(&large("fd00:66::/64")).await.unwrap();
    let mut one = node(dir.path(), "n1").await;
    let ranges = nets(&["fd00:66::/63"]);
    assert_eq!(
        one.allocate("web", &ranges, &[]).await.unwrap(),
        ["fd00:66:0:1::".parse::<IpAddr>().unwrap()]
    );
    claims.claim(&large("fd00:67::/48")).await.unwrap();
    let none = one.allocate("web", &nets(&["fd00:67::/48"]), &[]).await;
    assert!(matches!(none, Err(IpamError::Exhausted { .. })));
}
