"""The words of the dialogues: what tables are about, and which names training never sees.

Every list is cut by ``split``: each fifth name is held out, for tests only. ``made_up`` gives names nobody has, so
that the model learns to copy whatever stands in the table rather than to know a list by heart.
"""

from __future__ import annotations

from random import Random

FOOD = (
    "eggs, milk, butter, cheese, yoghurt, ham, salami, tomatoes, carrots, lettuce, cucumbers, apples, pears, grapes, "
    "lemons, oranges, bananas, kiwis, plums, cherries, strawberries, peppers, onions, garlic, potatoes, leeks, "
    "mushrooms, spinach, broccoli, celery, radishes, beans, peas, lentils, rice, pasta, noodles, flour, sugar, salt, "
    "honey, jam, mustard, ketchup, mayonnaise, vinegar, olive oil, soy sauce, bread, toast, rolls, crackers, oats, "
    "muesli, almonds, walnuts, raisins, chocolate, biscuits, ice cream, coffee, tea, cocoa, juice, beer, wine, "
    "water, lemonade, cream, tofu, salmon, tuna, shrimps, sausages, bacon, chicken, beef, minced meat, pizza, soup, "
    "dumplings, apple juice, red peppers, green peppers, sour cream, goat cheese, peanut butter, brown sugar, "
    "mineral water, zucchini, eggplants, avocados, melons, mangos, figs, dates, olives, pickles, capers, tortillas, "
    "popcorn"
)
SUPPLIES = (
    "screws, nails, bolts, nuts, washers, hammers, drills, saws, pliers, wrenches, screwdrivers, chisels, clamps, "
    "batteries, light bulbs, cables, fuses, plugs, candles, matches, ropes, tapes, brushes, buckets, paint, glue, "
    "sandpaper, ladders, shovels, rakes, hoses, pots, seeds, bulbs, gloves, boots, helmets, tyres, chairs, tables, "
    "pens, pencils, markers, notebooks, folders, envelopes, stamps, staples, paper, toner, chalk, erasers, scissors, "
    "bandages, plasters, pills, masks, thermometers, towels, napkins, plates, cups, spoons, forks, knives, bowls, "
    "soap, shampoo, toothpaste, sponges, bin bags, toilet paper, cotton pads, razors, diapers, filters, lamps, "
    "flags, cameras, tripods, routers, keyboards, mice, monitors, headphones, adapters, chargers, printers, boxes, "
    "labels"
)
THINGS = (
    "keys, wallet, passport, glasses, umbrella, phone, charger, remote, scissors, drill, hammer, ladder, flashlight, "
    "camera, laptop, tablet, backpack, suitcase, tent, bicycle, helmet, skates, ball, racket, guitar, violin, book, "
    "diary, atlas, map, compass, blanket, pillow, coat, scarf, hat, gloves, boots, slippers, ring, watch, necklace, "
    "kettle, toaster, blender, pan, corkscrew, iron, vacuum cleaner, broom, mop, bucket, lawn mower, rake, "
    "wheelbarrow, first aid kit, fire extinguisher, tool box, spare key, tax folder, birth certificate, sewing kit, "
    "card game, chess board, puzzle, telescope, binoculars, microscope, tripod, speaker, microphone, extension cord, "
    "tape measure"
)
ROOMS = (
    "kitchen, bathroom, bedroom, living room, hall, cellar, attic, garage, office, nursery, study, dining room, "
    "guest room, laundry, pantry, balcony, terrace, greenhouse, workshop, library, lobby, server room, meeting room, "
    "canteen, storeroom, stable, barn, sauna, pool, gym, classroom, lab, studio, conservatory, porch, shed, "
    "cold store, wine cellar, staircase, playroom, waiting room, reception, boiler room, archive, garden"
)
DEVICES = (
    "window, front door, back door, garage door, gate, oven, stove, dishwasher, washing machine, dryer, heater, "
    "boiler, fan, air conditioner, alarm, camera, printer, router, pump, valve, sprinkler, lamp, desk lamp, "
    "television, radio, coffee machine, freezer, fridge, robot, mower, charger, battery, tank, dustbin, mailbox, "
    "skylight, curtain, shutter, lift, conveyor, forklift, compressor, generator, server, projector, speaker, "
    "humidifier, thermostat, doorbell, scanner"
)
SHOPS = (
    "bakery, butcher, pharmacy, library, post office, museum, bank, cinema, theatre, supermarket, florist, "
    "hairdresser, swimming pool, gym, zoo, town hall, school, clinic, dentist, garage, petrol station, bookshop, "
    "cafe, restaurant, pub, market, kiosk, toy shop, shoe shop, hardware store, garden centre, recycling yard, "
    "tourist office, gallery, castle, botanical garden, ice rink, bike shop, laundromat, jeweller, optician, tailor, "
    "fish shop, music school"
)
EVENTS = (
    "dentist, meeting, team lunch, piano lesson, football, yoga, haircut, concert, exam, interview, flight, train, "
    "doctor, parents evening, choir, book club, swimming, dance class, car inspection, delivery, plumber, "
    "chimney sweep, workshop, lecture, party, wedding, barbecue, picnic, theatre, match, vaccination, video call, "
    "review, training, rehearsal, garden club, market, bin collection, window cleaner, board meeting, "
    "language course, board games"
)
PEOPLE = (
    "Anna, Ben, Clara, David, Emma, Felix, Greta, Hugo, Ida, Jonas, Karin, Leo, Maria, Nils, Olga, Paul, Rosa, "
    "Simon, Tina, Uwe, Vera, Walter, Xenia, Yusuf, Zoe, Ahmed, Bianca, Carlos, Diana, Erik, Fatima, George, Helen, "
    "Ivan, Julia, Kenji, Laura, Mehmet, Nora, Oscar, Petra, Quentin, Rita, Stefan, Theo, Ulrike, Viktor, Wendy, "
    "Yara, Zeno, Smith, Jones, Miller, Baker, Fischer, Weber, Novak, Rossi, Garcia, Kim, Chen, Tanaka, Singh, "
    "Okafor, Silva, Larsen, Dubois, Kowalski, Ivanov, Haddad, Brown, Taylor, Wilson, Evans, Green, Hall, Wood, "
    "Clark, Lewis, Young"
)
PLACES = (
    "in the hall, in the kitchen, in the garage, in the cellar, in the attic, in the car, in the office, "
    "in the shed, in the bedroom, in the bathroom, in the top drawer, in the left drawer, in the red box, "
    "in the blue bag, on the shelf, on the top shelf, on the desk, on the table, on the sofa, on the window sill, "
    "on the hook, under the bed, under the stairs, under the desk, under the sink, behind the door, behind the sofa, "
    "next to the sink, next to the bed, next to the printer, at work, at school, at the office, at the cleaners, "
    "in locker 4, in locker 12, on shelf 2, on shelf 7, in box 3, in box 15, in drawer 1, in drawer 9, "
    "in the wardrobe, in the cupboard, in the van"
)
STATES = (
    "open, closed, locked, unlocked, on, off, running, idle, empty, full, dirty, clean, charging, charged, broken, "
    "paused, blocked, ready, busy, warm, cold, offline, online, stopped, armed"
)
TITLES: dict[str, str] = {
    "stock": (
        "fridge, pantry, freezer, cupboard, garage, shed, toolbox, office, storeroom, cellar, drawer, basket, shop, "
        "van, boat, workshop, bathroom, first aid box, bar, picnic box, garden, warehouse, kitchen, locker, trunk"
    ),
    "places": "things, belongings, lost and found, household, inventory, storage, tools",
    "temperature": "temperatures, room temperatures, climate, thermometers, sensors",
    "humidity": "humidity, room humidity, moisture sensors",
    "state": "devices, house, machines, status, smart home, building, plant",
    "hours": "opening hours, shops, town, business hours, services",
    "birthday": "birthdays, family birthdays, team birthdays, friends",
    "event": "calendar, appointments, schedule, this week, agenda",
    "phone": "phone list, extensions, phone numbers, directory, contacts",
    "price": "prices, price list, menu, shop prices, market stall",
    "age": "ages, family, players, members",
    "desk": "rooms, seating plan, office plan, staff",
}
SYNONYMS = {
    "zucchini": "courgettes",
    "eggplants": "aubergines",
    "flashlight": "torch",
    "bicycle": "bike",
    "television": "tv",
    "fridge": "refrigerator",
    "phone": "mobile",
    "laptop": "notebook",
    "biscuits": "cookies",
    "yoghurt": "yogurt",
    "living room": "lounge",
    "bathroom": "washroom",
    "wrenches": "spanners",
    "lift": "elevator",
    "dustbin": "trash can",
    "hall": "corridor",
    "cellar": "basement",
    "study": "home office",
    "doctor": "physician",
    "lemonade": "soda",
    "shrimps": "prawns",
    "supermarket": "grocery store",
    "pharmacy": "chemist",
    "cinema": "movie theatre",
    "vacuum cleaner": "hoover",
    "diapers": "nappies",
    "tyres": "tires",
}
"""Other words a question may use for a name of the table; the answer keeps the table's word."""


def _list(text: str) -> list[str]:
    return text.split(", ")


MONTHS = _list("January, February, March, April, May, June, July, August, September, October, November, December")
DAYS = _list("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
UNITS = _list("g, kg, l, ml, bottles, packs, cans, bags, jars, boxes, pieces, slices, crates, cartons, tubes")
ONSETS = _list(
    "b, br, c, ch, cl, d, dr, f, fl, g, gl, gr, h, j, k, kl, l, m, n, p, pl, pr, qu, r, s, "
    "sh, sk, sl, st, t, th, tr, v, w, z"
)
VOWELS = _list("a, e, i, o, u, a, e, i, o, ai, ea, ee, oo, ou")
ENDS = _list("n, r, l, s, t, m, d, k, nd, ng, rt, ck, sh, x") + [""] * 6


def split(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of a list for training, and those held out: each fifth."""
    names = text.split(", ")
    return tuple(n for i, n in enumerate(names) if i % 5 != 4), tuple(n for i, n in enumerate(names) if i % 5 == 4)


KEYS: dict[str, tuple[str, ...]] = {
    "food": tuple(FOOD.split(", ")),
    "supplies": tuple(SUPPLIES.split(", ")),
    "things": tuple(THINGS.split(", ")),
    "rooms": tuple(ROOMS.split(", ")),
    "devices": tuple(DEVICES.split(", ")),
    "shops": tuple(SHOPS.split(", ")),
    "events": tuple(EVENTS.split(", ")),
    "people": tuple(PEOPLE.split(", ")),
}
_CUT = {name: split(", ".join(names)) for name, names in KEYS.items()}
HELD_OUT = frozenset(name for _, held in _CUT.values() for name in held)
"""Names no training dialogue holds, in any list."""
TRAINING = {name: tuple(n for n in kept if n not in HELD_OUT) for name, (kept, _) in _CUT.items()}
HELD = {name: held for name, (_, held) in _CUT.items()}


def made_up(rng: Random, person: bool = False, plural: bool = False) -> str:
    """A name of one to three syllables, rarely two words, that is not held out."""
    while True:
        words = []
        for _ in range(2 if not person and rng.random() < 0.2 else 1):
            syllables = rng.choice((1, 2, 2, 2, 3))
            word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(ENDS) for _ in range(syllables))
            words.append(word[:11])
        name = " ".join(words)
        if plural and not name.endswith("s"):
            name += "s"
        name = name.capitalize() if person else name
        if len(name) > 2 and name not in HELD_OUT and not HELD_OUT.intersection(name.split()):
            return name


def typo(rng: Random, text: str) -> str:
    """One letter dropped, doubled or exchanged with its neighbour, not at the start of a word."""
    places = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:i] + text[i + 1 :]
    if kind == 1:
        return text[:i] + text[i] + text[i:]
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
