use super::*;
use crate::certificates::plan;
use crate::trust::serving::{Serving, client_config};

pub(crate) const NOW: Time = Time(1_900_000_000_000);
const DAY: i64 = 24 * 3_600_000;

pub(crate) fn names() -> Vec<String> {
    vec!["sidescope.mesh.svc".to_owned()]
}

/// Fresh material.
pub(crate) fn material() -> Material {
    material_at(NOW)
}

/// Material that is fresh at some time.
pub(crate) fn material_at(now: Time) -> Material {
    let mut material = Material::default();
    maintain(&mut material, now);
    material
}

fn maintain(material: &mut Material, now: Time) -> Plan {
    let plan = plan(&material.held().unwrap(), &names(), now);
    material.carry_out(plan, &names(), now).unwrap();
    plan
}

#[test]
fn fresh_material_can_be_shown_and_trusted_and_stays() {
    let mut material = material();
    let held = material.held().unwrap();
    let (authority, server) = (held.authority.unwrap(), held.server.unwrap());
    assert_eq!(server.names, names());
    assert_eq!(server.issuer, authority.subject);
    assert_eq!(authority.until, NOW.plus(AUTHORITY_LIFE));
    let pair = material.server.clone().unwrap();
    Serving::default().show(pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap();
    client_config(material.bundle().as_bytes()).unwrap();
    assert!(maintain(&mut material, NOW).is_nothing());
    assert!(!format!("{material:?}").contains("PRIVATE"));
}

#[test]
fn serial_numbers_are_random_positive_and_of_one_length() {
    let (one, other) = (serial().unwrap(), serial().unwrap());
    assert_ne!(one, other);
    assert!(one[0] & 0x80 == 0 && one[0] != 0);
}

#[test]
fn it_comes_back_from_the_secret_as_it_was() {
    let mut material = material();
    // With a successor, and later with a predecessor.
    for day in [0, 250, 265] {
        maintain(&mut material, NOW.plus(day * DAY));
        assert_eq!(Material::from_data(&material.to_data()).unwrap(), material, "day {day}");
    }
    assert!(material.predecessor.is_some() && material.successor.is_none());
    assert_eq!(Material::from_data(&BTreeMap::new()).unwrap(), Material::default());
}

#[test]
fn a_successor_is_in_the_bundle_before_it_signs_and_its_predecessor_after() {
    let mut material = material();
    let first = material.authority.clone().unwrap().certificate;
    maintain(&mut material, NOW.plus(250 * DAY));
    let second = material.successor.clone().unwrap().certificate;
    assert_eq!(material.bundle(), format!("{first}{second}"));
    let held = material.held().unwrap();
    assert_eq!(held.server.unwrap().issuer, held.authority.unwrap().subject);

    maintain(&mut material, NOW.plus(265 * DAY));
    assert_eq!(material.bundle(), format!("{second}{first}"));
    let held = material.held().unwrap();
    assert_eq!(held.server.unwrap().issuer, held.authority.unwrap().subject);

    maintain(&mut material, NOW.plus(365 * DAY));
    assert_eq!(material.bundle(), second);
}

#[test]
fn what_was_not_written_by_us_says_which_key_it_is() {
    type Change = fn(&mut BTreeMap<String, ByteString>);
    let changes: [(&str, Change); 3] = [
        ("tls.key", |data| drop(data.remove("tls.key"))),
        ("ca.crt", |data| drop(data.insert("ca.crt".to_owned(), ByteString(vec![0xff])))),
        ("tls.crt", |data| drop(data.insert("tls.crt".to_owned(), ByteString(b"hello".to_vec())))),
    ];
    for (key, change) in changes {
        let mut data = material().to_data();
        change(&mut data);
        let err = Material::from_data(&data).and_then(|material| material.held()).unwrap_err().to_string();
        assert!(err.contains(key), "{err}");
    }
    // The authority's key is another one's.
    let mut mixed = material();
    mixed.authority = Some(Pair { key: "no key".to_owned(), ..mixed.authority.unwrap() });
    let plan = Plan { server: true, authorities: Authorities::Keep, forget_predecessor: false };
    let err = mixed.carry_out(plan, &names(), NOW).unwrap_err().to_string();
    assert!(err.contains("ca.key"), "{err}");
}

#[test]
fn a_clock_beyond_all_certificates_is_an_error() {
    assert!(matches!(authority(Time(i64::MAX)), Err(MaterialError::Clock(_))));
}
