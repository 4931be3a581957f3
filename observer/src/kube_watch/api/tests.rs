use serde_json::json;

use super::*;

#[test]
fn a_list_is_read_with_its_version_and_the_token_of_its_next_page() {
    let text = json!({
        "kind": "ServiceList", "apiVersion": "v1",
        "metadata": {"resourceVersion": "7", "continue": "token", "remainingItemCount": 3},
        "items": [{"metadata": {"name": "a", "managedFields": [{"x": 1}]}, "spec": {"ports": [{"port": 80}]}}],
    });
    let page = read_page(Kind::Service, &text.to_string()).unwrap();
    assert_eq!((page.resource_version.as_str(), page.next.as_deref()), ("7", Some("token")));
    assert_eq!(page.items[0].as_ref().unwrap().metadata().name.as_str(), "a");
    for items in ["[]", "null"] {
        let text = format!(r#"{{"items": {items}, "metadata": {{"resourceVersion": "7", "continue": ""}}}}"#);
        let page = read_page(Kind::Pod, &text).unwrap();
        assert!(page.items.is_empty() && page.next.is_none());
    }
    for bad in ["", "[]", "{\"items\": [", "{\"items\": 3}", "<html>"] {
        assert!(read_page(Kind::Pod, bad).is_err(), "{bad}");
    }
}

#[test]
fn an_object_that_makes_no_sense_hides_no_other_and_is_named_with_its_field() {
    let text = json!({
        "metadata": {"resourceVersion": "7"},
        "items": [
            {"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}},
            {"metadata": {"name": "odd", "namespace": "n"}, "spec": {"ports": [{"port": 0}]}},
            {"metadata": {"name": "A\u{1b}[31m"}},
            17,
            {"metadata": {"name": "b"}},
        ],
    });
    let page = read_page(Kind::Service, &text.to_string()).unwrap();
    let read: Vec<String> = page
        .items
        .iter()
        .map(|item| match item {
            Ok(object) => object.metadata().name.as_str().to_owned(),
            Err(unreadable) => unreadable.to_string(),
        })
        .collect();
    assert_eq!(read.len(), 5);
    assert_eq!((read[0].as_str(), read[4].as_str()), ("a", "b"));
    for (at, parts) in
        [(1, &["Service n/odd", "spec.ports[0].port", "0 is no port"][..]), (2, &["A[31m", "metadata.name"])]
    {
        assert!(parts.iter().all(|part| read[at].contains(part)), "{}", read[at]);
    }
    assert!(!read.iter().any(|text| text.contains('\u{1b}')));
}

#[test]
fn of_an_object_that_is_gone_only_its_name_has_to_make_sense() {
    let object = json!({
        "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "9", "labels": {"-": "-"}},
        "spec": {"hosts": 3},
    });
    let change = read_change(Kind::ServiceEntry, WatchEvent::Deleted(object.clone())).unwrap();
    let Change::Gone(version, Some(gone)) = change else { panic!("{change:?}") };
    assert_eq!((version.as_str(), gone.metadata().namespace().as_str()), ("9", "n"));
    let change = read_change(Kind::ServiceEntry, WatchEvent::Modified(object)).unwrap();
    assert!(matches!(&change, Change::There(version, Err(_)) if version == "9"), "{change:?}");
    let nameless = json!({"metadata": {"resourceVersion": "9"}});
    let change = read_change(Kind::Pod, WatchEvent::Deleted(nameless)).unwrap();
    assert!(matches!(change, Change::Gone(_, None)));
    assert!(read_change(Kind::Pod, WatchEvent::Added(json!({"metadata": {"name": "a"}}))).is_err());
}

#[test]
fn answers_of_the_api_server_tell_what_to_do() {
    let status = |code: u16, message: &str| Status { code, message: message.to_owned(), ..Status::default() };
    for (code, expected) in [(404, Failure::NotFound), (410, Failure::Expired)] {
        assert_eq!(Failure::from(&status(code, "x")), expected);
    }
    assert_eq!(
        Failure::from(&status(403, "pods is forbidden")),
        Failure::Forbidden("pods is forbidden (403)".to_owned())
    );
    assert_eq!(Failure::from(&status(500, "\u{1b}[31mno")), Failure::other("[31mno (500)"));
    let expired = WatchEvent::Error(Box::new(status(410, "too old")));
    assert_eq!(read_change(Kind::Pod, expired).unwrap_err(), Failure::Expired);
    let refused = Error::Service("connection refused".into());
    assert_eq!(Failure::from(refused), Failure::other("ServiceError: connection refused"));
}
