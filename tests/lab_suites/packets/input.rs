//! Bad input: a clear reason, nothing lost, everything else keeps serving.

use super::*;

/// Both Services of the test answer: the one in the file that broke, and the one in another file.
fn assert_both_serve(lab: &Lab, running: &Running) {
    for family in Family::ALL {
        for key in ["default/web", "default/other"] {
            assert_from(&lab.client.tcp(running.address(key, family), 80), &["pod-1"]);
        }
    }
}

#[test]
fn a_broken_manifest_keeps_the_last_good_version_and_is_named_with_its_line() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web")));
    lab.apply("other.yaml", &web("other").with_pods(&lab.pods));
    running.wait_serving("default/other");
    let broken =
        web("web").with_pods(&lab.pods).replacen("type: LoadBalancer", "type: [LoadBalancer", 1);
    lab.apply("services.yaml", &broken);
    running.wait_log("services.yaml:");
    let said = eventually("status names file and line", PATIENCE, || {
        let text = running.pinnace().status()?.0.to_string();
        ensure(text.contains("services.yaml:"), || text.clone()).map(|()| text)
    });
    let line = said.split("services.yaml:").nth(1).and_then(|rest| rest.chars().next());
    assert!(
        line.is_some_and(|digit| digit.is_ascii_digit()),
        "a line number follows the file: {said}"
    );
    assert_both_serve(&lab, &running);

    lab.apply("services.yaml", &web("web").port("admin", "TCP", 81).with_pods(&lab.pods));
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        eventually("the repaired version serves", PATIENCE, || {
            lab.client.tcp(vip, 81).map_err(|failure| failure.to_string())
        });
    }
    eventually("the complaint is gone", PATIENCE, || {
        let text = running.pinnace().status()?.0.to_string();
        ensure(!text.contains("services.yaml:"), || text.clone())
    });
}

#[test]
fn objects_with_impossible_values_do_not_disturb_others() {
    let cases = [
        ("port-zero", service("bad").port("http", "TCP", 0)),
        ("port-too-large", service("bad").port("http", "TCP", 70_000)),
        ("unknown-protocol", service("bad").port("http", "TCPP", 80)),
        ("range", web("bad").admit(&["10.0.0.0/40"])),
        ("address", web("bad").annotation("pinnace.dev/addresses", "10.88.0")),
        ("mode", web("bad").annotation("pinnace.dev/mode", "both")),
        ("pool", web("bad").annotation("pinnace.dev/pool", "nowhere")),
    ];
    let (lab, running) = serving(1, 0, in_front_of_all(web("web")));
    lab.apply("other.yaml", &web("other").with_pods(&lab.pods));
    running.wait_serving("default/other");
    for (name, bad) in cases {
        lab.apply("bad.yaml", &bad.with_pods(&lab.pods));
        eventually(&format!("{name} is complained about"), PATIENCE, || {
            let status = running.pinnace().status()?;
            let said = !status.reasons("default/bad").is_empty()
                || status.0.to_string().contains("bad.yaml");
            ensure(said, || status.0.to_string())
        });
        assert_both_serve(&lab, &running);
        lab.delete("bad.yaml");
        eventually(&format!("{name} is forgotten"), PATIENCE, || {
            let status = running.pinnace().status()?;
            ensure(status.service("default/bad").is_null(), || status.0.to_string())
        });
    }
}

#[test]
fn files_that_are_no_manifests_do_not_disturb_others() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web")));
    lab.apply("other.yaml", &web("other").with_pods(&lab.pods));
    running.wait_serving("default/other");
    lab.apply("kind.yaml", "apiVersion: example.org/v1\nkind: Unheard\nmetadata:\n  name: of\n");
    lab.apply("empty.yaml", "");
    lab.apply("scalar.yaml", "just words\n");
    lab.apply("deep.yaml", &"[".repeat(100_000));
    lab.apply("anchors.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\n");
    lab.apply(".web.yaml.swp", "\u{1}binary");
    lab.apply("notes.txt", "kind: Service");
    running.wait_log("scalar.yaml");
    assert_both_serve(&lab, &running);
}

#[test]
fn addresses_of_the_wrong_family_are_reported_and_the_rest_serve() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web")));
    let manifest =
        web("bad").with_pods(&lab.pods).replace("addressType: IPv6", "addressType: IPv4");
    lab.apply("bad.yaml", &manifest);
    running.wait_log("bad");
    assert_from(&lab.client.tcp(running.address("default/web", Family::V4), 80), &["pod-1"]);
}

#[test]
fn ten_thousand_objects_in_one_file_are_served() {
    let (lab, running) = serving_with(1, 0, in_front_of_all(web("web")), |pinnace| {
        pinnace.set("PINNACE_POOLS", "10.88.0.200-10.88.0.220,fd88::200-fd88::220,10.99.0.0/16")
    });
    let mut text = String::new();
    for number in 0..5_000 {
        let name = format!("mass-{number}");
        let service = web(&name).only(Family::V4);
        text += &service.yaml();
        text += &manifests::slice(
            &name,
            "1",
            Family::V4,
            &[("http", "TCP", 8080)],
            &[manifests::Endpoint::ready(&lab.pods[0])],
        );
    }
    lab.apply("mass.yaml", &text);
    eventually("the last of them is served", Duration::from_secs(120), || {
        let status = running.pinnace().status()?;
        ensure(status.phase("default/mass-4999") == "Serving", || {
            status.reasons("default/mass-4999")
        })
    });
    for family in Family::ALL {
        assert_from(&lab.client.tcp(running.address("default/web", family), 80), &["pod-1"]);
    }
}
