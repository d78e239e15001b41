//! Objects that come, go, move and grow while pods run.

use crate::support::*;
use bulkhead_lab::{Lab, Node, Result, unmet, until};
use std::{fs, time::Instant};

pub const CASES: &[Case] = &[
    (
        "a file that is renamed keeps its objects in force, one that is removed takes them along",
        renamed_and_removed,
    ),
    ("a folder of objects that is gone changes nothing; made again, its changes are seen", folder_made_again),
    ("of 200 edits in a row the last is in force, whatever the ones before were", burst),
    ("2,000 files and one of 5 MB are read, and a change is still in force soon", many_and_large),
    (
        "a pod whose policy asks for labels makes others of pods that are here, whose marks follow",
        newly_asked,
    ),
    ("a partition that goes leaves its pods as strays that are counted", partition_goes),
    ("a namespace that moves leaves its pods where their addresses are", namespace_moves),
    ("a range that changes makes the pods outside it strays; the next pod is inside", range_changes),
];

/// Address and port that the daemon says are open, or not, from the virtual machine.
fn opens(lab: &Lab, pod: usize, port: u16) -> Result<bool> {
    let (node, pod) = (&lab.nodes[lab.pods[pod].node], &lab.pods[pod]);
    let request = serde_json::json!({
        "from": lab.vm.v4.to_string(), "to": pod.v4.to_string(), "protocol": "tcp", "port": port,
    });
    let answer: bulkhead_api::messages::Explanation = node.post("/v1/explain", &request)?;
    Ok(answer.allowed)
}

fn until_opens(lab: &Lab, pod: usize, port: u16, open: bool) -> Result<()> {
    until(&format!("port {port} of the pod is {}", if open { "open" } else { "closed" }), LATER, || {
        Ok((opens(lab, pod, port)? == open).then_some(()))
    })
}

fn generation(node: &Node) -> Result<u32> {
    Ok(status(node)?.generation)
}

/// Nobody asks for `app` before the second pod comes.
fn newly_asked(lab: &mut Lab) -> Result<()> {
    let (asked, asking) = (index(lab, "payments/db-0"), index(lab, "web/front-0"));
    let identity = |lab: &Lab| -> Result<u32> {
        let all = endpoints(&lab.nodes[0])?;
        let of = all.iter().find(|e| e.pod.name == "db-0").map(|e| e.identity);
        of.ok_or_else(|| bulkhead_lab::Error::Unmet("the pod is not there".into()))
    };
    let before = generation(&lab.nodes[0])?;
    lab.objects.write(
        "labels.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: db-0, namespace: payments, labels: {app: db}}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: from-db, namespace: web}\n\
         spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}]}]}\n",
    )?;
    until("the policy is in force", SOON, || Ok((generation(&lab.nodes[0])? != before).then_some(())))?;
    add(lab, asked)?;
    let nobody_asks = identity(lab)?;
    add(lab, asking)?;
    require(identity(lab)? != nobody_asks, "it is told apart now")?;
    check(lab, asked)?;
    check(lab, asking)
}

fn renamed_and_removed(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    let dir = lab.objects.dir().to_path_buf();
    fs::rename(dir.join("payments.yaml"), dir.join("zahlungen.yaml"))?;
    lab.objects.write(
        "cluster.yaml",
        &lab.objects.read("cluster.yaml")?.replace("172.30.9.0/24", "172.30.8.0/24"),
    )?;
    until_opens(lab, pod, 20880, false)?;
    require(partition(&lab.nodes[0], "payments")?.is_some(), "the renamed file's partition is in force")?;
    lab.objects.write(
        "cluster.yaml",
        &lab.objects.read("cluster.yaml")?.replace("172.30.8.0/24", "172.30.9.0/24"),
    )?;
    until_opens(lab, pod, 20880, true)?;
    // While others name it, it cannot go.
    lab.objects.remove("zahlungen.yaml")?;
    until_refused(&lab.nodes[0], "payments")?;
    require(partition(&lab.nodes[0], "payments")?.is_some(), "what rules name stays in force")?;
    let web = lab.objects.read("web.yaml")?;
    lab.objects.write("web.yaml", &web.replace("[{partition: payments}]", "[{partition: default}]"))?;
    until("the partition is gone", SOON, || Ok(partition(&lab.nodes[0], "payments")?.is_none().then_some(())))
}

fn folder_made_again(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    let (dir, aside) = (lab.objects.dir().to_path_buf(), lab_dir("aside"));
    let before = generation(&lab.nodes[0])?;
    fs::rename(&dir, &aside)?;
    // Past the next look at the folder.
    std::thread::sleep(std::time::Duration::from_secs(12));
    require(opens(lab, pod, 20880)? && !opens(lab, pod, 20881)?, "what was in force is in force")?;
    require(generation(&lab.nodes[0])? == before, "and nothing was switched")?;
    fs::create_dir(lab_dir("new"))?;
    for name in names(&aside)? {
        fs::copy(aside.join(&name), lab_dir("new").join(&name))?;
    }
    fs::rename(lab_dir("new"), &dir)?;
    for (port, ports) in [("20880", "20881"), ("20881", "20882")] {
        let edited = lab.objects.read("payments.yaml")?.replace(port, ports);
        lab.objects.write("payments.yaml", &edited)?;
        until_opens(lab, pod, ports.parse().expect("a port"), true)?;
    }
    // By now it is watched again: the last change was noticed at once, not at the next look.
    let edited = lab.objects.read("payments.yaml")?.replace("20882", "20883");
    lab.objects.write("payments.yaml", &edited)?;
    until("a change in the new folder is in force within 4 s", std::time::Duration::from_secs(4), || {
        Ok(opens(lab, pod, 20883)?.then_some(()))
    })
}

fn burst(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    let text = lab.objects.read("payments.yaml")?;
    let path = lab.objects.dir().join("payments.yaml");
    for port in 0..200u16 {
        match port % 4 {
            // Broken, in place, in pieces.
            1 => fs::write(&path, &text[..text.len() / 2])?,
            2 => lab
                .objects
                .write("payments.yaml", &text.replace("policyID: 100", "policyID: 100000"))
                .map(drop)?,
            _ => fs::write(&path, text.replace("20880", &(21_000 + port).to_string()))?,
        }
    }
    until_opens(lab, pod, 21_199, true)?;
    require(!opens(lab, pod, 21_195)? && !opens(lab, pod, 20_880)?, "of the others nothing")?;
    until_content(&lab.nodes[0])
}

fn many_and_large(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    let group = |name: &str, cidrs: &str| {
        format!(
            "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {{name: {name}}}\nspec:\n  cidrs: [{cidrs}]\n"
        )
    };
    let start = Instant::now();
    for n in 0..2000 {
        lab.objects.write(
            &format!("g{n}.yaml"),
            &group(&format!("g{n}"), &format!("192.168.{}.{}/32", n / 250, n % 250)),
        )?;
    }
    // 5 MB, most of it comment.
    let large = group("large", "192.0.2.0/24") + &format!("# {}\n", "x".repeat(998)).repeat(5_000);
    lab.objects.write("large.yaml", &large)?;
    let edit = |port: &str, to: &str| -> Result<Instant> {
        lab.objects.write("payments.yaml", &lab.objects.read("payments.yaml")?.replace(port, to))
    };
    edit("20880", "20881")?;
    until_opens(lab, pod, 20_881, true)?;
    println!("2,000 files written and the last change in force after {:.1} s", start.elapsed().as_secs_f64());
    let edited = edit("20881", "20882")?;
    until_opens(lab, pod, 20_882, true)?;
    println!("one more edit is in force after {} ms", edited.elapsed().as_millis());
    until_content(&lab.nodes[0])?;
    for n in 0..2000 {
        lab.objects.remove(&format!("g{n}.yaml"))?;
    }
    edit("20882", "20883")?;
    until_opens(lab, pod, 20_883, true)
}

fn strays(node: &Node, name: &str) -> Result<(usize, usize)> {
    match partition(node, name)? {
        Some(p) => Ok((p.endpoints, p.strays)),
        None => unmet(format!("there is no partition {name}")),
    }
}

fn partition_goes(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    let text = lab.objects.read("payments.yaml")?;
    // Nobody may name what goes.
    let web = lab.objects.read("web.yaml")?;
    lab.objects.write("web.yaml", &web.replace("[{partition: payments}]", "[{partition: default}]"))?;
    lab.objects.remove("payments.yaml")?;
    until("the pod is a stray of the default partition", SOON, || {
        let now = strays(&lab.nodes[0], "default")?;
        if now == (1, 1) { Ok(Some(())) } else { unmet(format!("{now:?} pods and strays")) }
    })?;
    check(lab, pod)?;
    let route = lab.pods[pod].v4;
    until("its block is announced on", SOON, || {
        Ok(lab.bird.routes("n1v4")?.iter().any(|r| r.prefix.contains(route.into())).then_some(()))
    })?;
    lab.nodes[0].kill_daemon()?;
    lab.nodes[0].start_daemon()?;
    require(strays(&lab.nodes[0], "default")? == (1, 1), "also for the next daemon")?;
    lab.objects.write("payments.yaml", &text)?;
    until("the pod is at home again", SOON, || {
        Ok((strays(&lab.nodes[0], "payments")? == (1, 0)).then_some(()))
    })?;
    check(lab, pod)?;
    del(lab, pod)?;
    nothing_left(lab, 0)
}

fn namespace_moves(lab: &mut Lab) -> Result<()> {
    let [pod, next] = [index(lab, "web/front-0"), index(lab, "web/front-1")];
    add(lab, pod)?;
    let (web, payments) = (lab.objects.read("web.yaml")?, lab.objects.read("payments.yaml")?);
    lab.objects.write("web.yaml", &web.replace("namespaces: [web]", "namespaces: []"))?;
    lab.objects.write("payments.yaml", &payments.replace("[payments]", "[payments, web]"))?;
    until("the namespace has moved", SOON, || {
        let moved = |n: usize| -> Result<bool> {
            Ok(partition(&lab.nodes[n], "payments")?.is_some_and(|p| p.namespaces.len() == 2))
        };
        Ok((moved(0)? && moved(1)?).then_some(()))
    })?;
    check(lab, pod)?;
    require(endpoints(&lab.nodes[0])?[0].partition == "web", "the address decides for the pod's life")?;
    lab.nodes[0].kill_daemon()?;
    lab.nodes[0].start_daemon()?;
    require(endpoints(&lab.nodes[0])?[0].partition == "web", "also for the next daemon")?;
    add(lab, next)?;
    require(endpoints(&lab.nodes[1])?[0].partition == "payments", "the next pod is where its namespace is")?;
    check(lab, pod)?;
    del(lab, pod)?;
    nothing_left(lab, 0)
}

fn range_changes(lab: &mut Lab) -> Result<()> {
    let [pod, shop] = [index(lab, "web/front-0"), index(lab, "payments/db-0")];
    add(lab, pod)?;
    let text = lab.objects.read("web.yaml")?;
    lab.objects.write("web.yaml", &text.replace("10.66.0.0/16", "10.67.0.0/16"))?;
    until("the pod is a stray", SOON, || Ok((strays(&lab.nodes[0], "web")? == (1, 1)).then_some(())))?;
    check(lab, pod)?;
    add(lab, shop)?;
    // The runtime asks again for the same container after its interface went: it comes back inside the range.
    let host = endpoints(&lab.nodes[0])?
        .iter()
        .find(|e| e.pod.name == "front-0")
        .expect("listed")
        .host_interface
        .clone();
    lab.nodes[0].netns.ip(&format!("link del {host}"))?;
    add(lab, pod)?;
    require(lab.pods[pod].v4.octets()[1] == 67, &format!("{} is outside the range", lab.pods[pod].v4))?;
    require(strays(&lab.nodes[0], "web")? == (1, 0), "no stray any more")?;
    del(lab, pod)?;
    del(lab, shop)?;
    nothing_left(lab, 0)
}
