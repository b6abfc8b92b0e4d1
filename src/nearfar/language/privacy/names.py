"""Names of fields that hold something personal, in several languages, and what kind that is.

A name is written here in small letters without accents, its words parted by one blank; `fields.py` reads `dateOfBirth`,
`date_of_birth` and `Date of birth` as the same.
"""

from __future__ import annotations

from nearfar.language.privacy.findings import Kind

LONGEST = 4
"""Words of a name, at most."""

_PASSWORDS = (
    "password;passwd;passwort;pwd;passphrase;pass phrase;kennwort;mot de passe;contrasena;senha;wachtwoord;haslo;"
    "parola d ordine;losenord;salasana;passwort lautet;passcode;pass code;wifi key;wlan key;wlan schlussel;"
    "recovery phrase;seed phrase;mnemonic;recovery code;backup code"
)
PASSWORDS = frozenset(_PASSWORDS.split(";"))
"""Whatever is said to be one of these is a secret, be it ever so short."""

_SECRETS = (
    "secret;token;api key;apikey;access key;access token;auth token;refresh token;client secret;secret key;"
    "private key;secret access key;authorization;session id;sessionid;session token;cookie;set cookie;signing key;"
    "encryption key;webhook secret;credentials;credential;bearer;x api key;api token;api schlussel;cle api;"
    "connection string;account key;shared key;otp;one time code;verification code"
)
_PINS = "pin;pin code;cvv;cvc;cvv2;security code;tan;puk"
_BIRTH = (
    "date of birth;birth date;birthdate;birthday;dob;born;born on;geburtsdatum;geburtstag;geb;geboren;geboren am;"
    "date de naissance;ne le;nee le;fecha de nacimiento;nacido el;nacida el;data di nascita;nato il;nata il;"
    "data de nascimento;geboortedatum;data urodzenia"
)
_IDENTITY = (
    "ssn;social security;social security number;social security no;social insurance number;national id;"
    "national insurance number;nino;national identification number;identity number;identity card;id card;id number;"
    "passport;passport number;passport no;passport nr;driver license;drivers license;driver s license;"
    "driving licence;licence number;license number;tax id;tax number;vat id;personalausweis;"
    "personalausweisnummer;ausweisnummer;reisepass;reisepassnummer;steuer id;steuernummer;steueridentifikationsnummer;"
    "sozialversicherungsnummer;versichertennummer;numero de securite sociale;nir;dni;nif;nss;curp;cpf;cnpj;"
    "codice fiscale;bsn;pesel;aadhaar;aadhar;aadhaar number;pan number;employee id;employee number;personalnummer;"
    "license plate;number plate;kennzeichen;vin;imei;student id;matrikelnummer"
)
_PEOPLE = (
    "patient;patient name;patientin;name of patient;full name;first name;firstname;given name;last name;lastname;"
    "surname;family name;middle name;maiden name;mother s maiden name;legal name;customer name;client name;"
    "employee name;contact name;account holder;cardholder;card holder;cardholder name;name on card;name of patient;"
    "emergency contact;next of kin;spouse;vorname;nachname;familienname;geburtsname;vor und nachname;"
    "name des patienten;kontoinhaber;karteninhaber;nom de famille;prenom;nom complet;titulaire;nombre completo;"
    "apellido;apellidos;paciente;cognome;nome e cognome;paziente;nome completo;sobrenome;voornaam;achternaam;imie;"
    "nazwisko;my name;mein name"
)
_POSTAL = (
    "home address;street address;postal address;mailing address;billing address;shipping address;delivery address;"
    "residential address;address line 1;address line 2;address;street;zip code;postcode;postal code;anschrift;adresse;"
    "wohnort;strasse;hausnummer;plz;lieferadresse;rechnungsadresse;direccion;domicilio;indirizzo;endereco;adres;"
    "code postal;codigo postal;cap;place of birth;geburtsort"
)
_HEALTH = (
    "diagnosis;diagnoses;medical record number;medical record;mrn;medical history;blood type;blood group;allergies;"
    "medication;medications;prescription;health insurance number;nhs number;insurance id;policy number;diagnose;"
    "befund;blutgruppe;medikamente;allergien;krankenversicherungsnummer;krankenkasse;diagnostic;diagnostico;diagnosi;"
    "groupe sanguin;hiv status;disability"
)
_ACCOUNT = (
    "account number;account no;bank account;bank account number;routing number;sort code;swift;swift code;bic;"
    "kontonummer;bankleitzahl;blz;numero de compte;numero de cuenta;conto corrente;salary;gehalt;salaire;card number;"
    "credit card;credit card number;debit card;kreditkarte;kreditkartennummer;kartennummer;carte bancaire;"
    "wallet address"
)

FIELDS: dict[str, Kind] = {
    name: kind
    for names, kind in (
        (_PASSWORDS, Kind.SECRET), (_SECRETS, Kind.SECRET), (_PINS, Kind.SECRET), (_BIRTH, Kind.BIRTH_DATE),
        (_IDENTITY, Kind.NATIONAL_ID), (_PEOPLE, Kind.NAME), (_POSTAL, Kind.POSTAL), (_HEALTH, Kind.HEALTH),
        (_ACCOUNT, Kind.ACCOUNT), ("iban", Kind.IBAN), ("email;e mail;mail;email address;correo;courriel", Kind.EMAIL),
        ("phone;phone number;telephone;tel;telefon;telefonnummer;mobile;mobile number;cell;handy;handynummer;fax;"
         "telefono;telefone;movil;celular;rufnummer;numero de telephone", Kind.PHONE),
        ("ip;ip address;ip adresse;client ip;remote addr", Kind.IP), ("mac address;mac adresse", Kind.HARDWARE),
        ("lat;latitude;lon;lng;longitude;breitengrad;langengrad;gps;coordinates;koordinaten", Kind.PLACE),
    )
    for name in names.split(";")
}  # fmt: skip
"""The name of a field -> what stands in it."""

LAST_WORDS = frozenset(name.rpartition(" ")[2] for name in FIELDS)
"""Of the names of fields."""
NEEDS_DIGITS: dict[Kind, int] = {
    Kind.BIRTH_DATE: 2, Kind.NATIONAL_ID: 4, Kind.ACCOUNT: 3, Kind.IBAN: 8, Kind.PHONE: 5, Kind.IP: 2, Kind.PLACE: 2,
}  # fmt: skip
"""Digits that a value of this kind has at least; fewer say that the field's name was only spoken of."""
PINS = frozenset(_PINS.split(";"))
COMMON_WORDS = frozenset(
    ("address", "adresse", "street", "cap", "born", "geb", "diagnostic", "patient", "spouse", "prescription")
)
"""Names that are everyday words, too: they count with ':' or '=' directly behind them and a value that is not code."""
