"""How people ask. ``{k}`` is the name asked for, ``{t}`` the table's title, ``{v}`` a value.

In every list the phrasings after ``|`` are held out: training never sees them, tests ask only them. Most held out
ones put known words together in a new way; that, and no more, is what "unseen phrasing" measures.
"""

from __future__ import annotations

_RAW: dict[str, str] = {
    "stock.how": """how many {k} do I have / how many {k} do we have / how many {k} are there /
        how many {k} are left / how much {k} do I have / how much {k} do we have / how much {k} is there /
        how much {k} is left / how many {k} are in the {t} / how much {k} is in the {t} / count the {k} /
        number of {k} / how many {k} / how much {k} / tell me how many {k} I have / tell me how many {k} there are /
        do you know how many {k} we have / what about the {k} / {k} / how many {k} have I got /
        what amount of {k} do I have / how many {k} does the {t} hold / I need to know how many {k} are left /
        give me the number of {k} / what is the number of {k} / how many {k} remain /
        in the {t}, how many {k} are there
        | how many {k} have we got left / tell me the number of {k} in the {t} / what number of {k} is there /
        do you know how much {k} is left / I want to know how many {k} we have""",
    "stock.any": """do I have {k} / do we have {k} / do I have any {k} / do we have any {k} / is there {k} /
        is there any {k} / are there any {k} / are there {k} / any {k} left / any {k} / have we got {k} /
        have I got any {k} / is there any {k} in the {t} / are there any {k} in the {t} / is {k} there /
        are we out of {k} / do we still have {k} / do I still have any {k} / did we run out of {k} /
        tell me if there is any {k} / is there still {k} in the {t}
        | do we have any {k} left / have we got any {k} in the {t} / are there still any {k} /
        tell me if we have {k}""",
    "most": """what do I have most of / what do we have the most of / which is the most / what is there most of /
        which one is the most / what is the largest amount / most of what / which item has the highest number /
        which has the most / what has the biggest number
        | which one has the most / what item do we have the most of""",
    "least": """what do I have least of / what do we have the least of / which is the least /
        what is there least of / which one is the least / what is the smallest amount / least of what /
        which item has the lowest number / which has the least / what has the smallest number
        | which one has the least / what item do we have the least of""",
    "list": """what is in the {t} / what do you know / what do we have / list everything / what is there /
        what is on the list / list the {t} / show me everything / what can I ask about /
        name everything in the {t} / what have I got / show the {t} / list all / what is all in the {t} /
        tell me everything that is there / what items are there / give me the list
        | show me the list / tell me what is in the {t} / list everything in the {t}""",
    "places.where": """where is the {k} / where are the {k} / where is my {k} / where are my {k} /
        where did I put the {k} / where can I find the {k} / where do I find my {k} / I am looking for the {k} /
        I can not find my {k} / have you seen my {k} / where is {k} / find the {k} / find my {k} /
        tell me where the {k} is / do you know where my {k} is / location of the {k} /
        what is the place of the {k} / {k}, where / in which place is the {k} / where did we leave the {k} /
        where should I look for my {k} / did you see the {k} / I lost my {k}
        | where did I leave my {k} / tell me where I can find the {k} / I am looking for my {k}, where is it /
        have you seen the {k}""",
    "temperature.what": """what is the temperature in the {k} / how warm is it in the {k} /
        how cold is it in the {k} / how hot is the {k} / how warm is the {k} / temperature in the {k} /
        {k} temperature / what does the thermometer in the {k} say / tell me the temperature of the {k} /
        what temperature has the {k} / how many degrees are in the {k} / is it warm in the {k} /
        what is the {k} temperature / how cold is the {k} / give me the temperature in the {k} /
        the {k}, how warm is it / do you know how warm the {k} is / and the {k}
        | tell me how warm it is in the {k} / what is the temperature of the {k} / how hot is it in the {k} /
        how many degrees has the {k}""",
    "temperature.most": """which room is the warmest / where is it warmest / what is the warmest place /
        which is the hottest room / where is it hottest / which room has the highest temperature / warmest room /
        tell me the warmest room
        | where is the warmest place / which place is the hottest""",
    "temperature.least": """which room is the coldest / where is it coldest / what is the coldest place /
        which is the coolest room / where is it coolest / which room has the lowest temperature / coldest room /
        tell me the coldest room
        | where is the coldest place / which place is the coolest""",
    "humidity.what": """what is the humidity in the {k} / how humid is it in the {k} / how damp is the {k} /
        humidity in the {k} / {k} humidity / tell me the humidity of the {k} / how dry is the {k} /
        how humid is the {k} / how moist is it in the {k} / what humidity has the {k} /
        give me the humidity in the {k} / what does the sensor in the {k} say / is it damp in the {k} / and the {k}
        | tell me how humid it is in the {k} / what is the humidity of the {k} / how damp is it in the {k}""",
    "state.what": """what is the state of the {k} / what is the status of the {k} / how is the {k} / {k} status /
        state of the {k} / tell me the state of the {k} / what about the {k} / is the {k} all right /
        what is the {k} doing / in what state is the {k} / check the {k} / {k} / the {k}, how is it /
        what is up with the {k} / give me the status of the {k} / do you know the state of the {k}
        | tell me the status of the {k} / check the state of the {k} / how is the {k} doing""",
    "state.is": """is the {k} {v} / is my {k} {v} / {k} {v} / is the {k} still {v} / tell me if the {k} is {v} /
        the {k} is {v}, right / do you know if the {k} is {v} / check if the {k} is {v} / is the {k} {v} now /
        can you see if the {k} is {v} / did I leave the {k} {v}
        | tell me if my {k} is still {v} / can you check if the {k} is {v} / is it true that the {k} is {v}""",
    "hours.open": """when does the {k} open / what time does the {k} open / at what time does the {k} open /
        when will the {k} open / from when is the {k} open / opening time of the {k} / how early does the {k} open /
        tell me when the {k} opens / {k} opens when / when can I go to the {k} / do you know when the {k} opens /
        since when is the {k} open
        | tell me at what time the {k} opens / how early can I go to the {k} / when is the opening time of the {k}""",
    "hours.close": """when does the {k} close / what time does the {k} close / at what time does the {k} close /
        when will the {k} close / until when is the {k} open / closing time of the {k} /
        how late does the {k} close / tell me when the {k} closes / {k} closes when / how long is the {k} open /
        do you know when the {k} closes / how late is the {k} open
        | tell me at what time the {k} closes / tell me how long the {k} is open /
        when is the closing time of the {k}""",
    "hours.both": """what are the opening hours of the {k} / when is the {k} open / opening hours of the {k} /
        {k} hours / {k} / tell me the hours of the {k} / what are the hours of the {k} /
        give me the opening hours of the {k} / what hours is the {k} open / do you know when the {k} is open /
        what about the {k}
        | tell me the opening hours of the {k} / give me the hours of the {k} / tell me when the {k} is open""",
    "birthday.when": """when is {k}'s birthday / when was {k} born / what is {k}'s birthday / {k}'s birthday /
        birthday of {k} / when is the birthday of {k} / on which day is {k}'s birthday / tell me {k}'s birthday /
        when does {k} have a birthday / do you know when {k}'s birthday is / what day is {k}'s birthday /
        what date is {k}'s birthday / and {k} / when do I congratulate {k}
        | tell me when {k}'s birthday is / do you know {k}'s birthday / on what date is {k}'s birthday /
        tell me the birthday of {k}""",
    "event.when": """when is the {k} / what day is the {k} / at what time is the {k} / what time is the {k} /
        when do I have {k} / when is my {k} / on which day is the {k} / tell me when the {k} is / {k} / {k}, when /
        when does the {k} start / when do we have the {k} / do you know when the {k} is / on what day is my {k} /
        when was the {k} again / date of the {k} / when do I go to the {k}
        | tell me when my {k} is / on what day do I have the {k} / do you know what time the {k} is /
        when do we go to the {k}""",
    "phone.what": """what is {k}'s number / what is {k}'s phone number / what is {k}'s extension / {k}'s number /
        {k}'s extension / number of {k} / how do I call {k} / how can I reach {k} / tell me {k}'s number /
        which number has {k} / phone number of {k} / what is the number of {k} / what number do I dial for {k} /
        give me {k}'s extension / I want to call {k} / do you know {k}'s number / extension of {k} / call {k}
        | tell me {k}'s extension / how do I reach {k} / give me the phone number of {k} /
        what is the extension of {k}""",
    "phone.who": """who has number {v} / who has extension {v} / whose number is {v} / whose extension is {v} /
        who is {v} / who called from {v} / which person has {v} / to whom belongs {v} / who can I reach at {v} /
        {v}, who is that
        | whose phone number is {v} / tell me who has number {v}""",
    "price.what": """how much is the {k} / how much are the {k} / what does {k} cost / what do {k} cost /
        how much does {k} cost / how much do the {k} cost / what is the price of {k} / price of {k} /
        what is the price of the {k} / tell me the price of {k} / how expensive is the {k} / how expensive are {k} /
        what do I pay for {k} / {k} price / how much for {k} / what are {k} worth / what do you want for the {k} /
        do you know what {k} cost / give me the price of {k} / and the {k}
        | how much do I pay for {k} / tell me how much the {k} cost / do you know the price of {k} / how much is {k}""",
    "price.most": """what is the most expensive / what costs the most / which is the most expensive /
        what has the highest price / which one costs the most / most expensive item
        | which item costs the most / which has the highest price""",
    "price.least": """what is the cheapest / what costs the least / which is the cheapest /
        what has the lowest price / which one costs the least / cheapest item
        | which item costs the least / which has the lowest price""",
    "age.how": """how old is {k} / what is {k}'s age / what age is {k} / {k}'s age / age of {k} /
        tell me how old {k} is / tell me {k}'s age / do you know how old {k} is / how many years old is {k} /
        what is the age of {k} / how old is {k} now / how many years has {k} / and {k}
        | tell me the age of {k} / do you know {k}'s age / tell me how many years old {k} is""",
    "age.most": """who is the oldest / who is oldest / which one is the oldest / tell me the oldest /
        oldest person / who has the highest age
        | tell me who is oldest / which person is the oldest""",
    "age.least": """who is the youngest / who is youngest / which one is the youngest / tell me the youngest /
        youngest person / who has the lowest age
        | tell me who is youngest / which person is the youngest""",
    "desk.where": """where is {k} / where does {k} sit / where can I find {k} / in which room is {k} /
        what room is {k} in / {k}'s room / room of {k} / where do I find {k} / tell me where {k} sits /
        which room has {k} / I am looking for {k} / what is {k}'s room / do you know where {k} is /
        where does {k} work / and {k} / find {k}
        | tell me where I can find {k} / do you know where {k} sits / in what room does {k} sit / tell me {k}'s room""",
    "hello": """hello / hi / hey / good morning / good evening / hello there / hi there / good day
        | hey there / good evening to you""",
    "thanks": """thanks / thank you / many thanks / thank you very much / thanks a lot / great, thanks /
        ok, thank you
        | thank you a lot / great, thank you""",
    "off": """what is the weather like / who won the match / what is the capital of France / tell me a joke /
        how are you / who is the president / what is your name / can you sing / where do you live /
        what is two plus two / why is the sky blue / write a poem / who wrote this book / what time is it /
        what day is today / play some music / turn on the light / how far is the moon / who are you / what is love /
        translate this / how do I cook rice / what should I wear / open the window / what is the meaning of life /
        book a table / order a pizza / when was the war / call me a taxi / how tall is the tower
        | who won the war / what is the capital of Spain / tell me a story / how far is the sun / write a letter""",
}

PREFIXES = (
    "please ",
    "hey, ",
    "hello, ",
    "hi, ",
    "so, ",
    "excuse me, ",
    "sorry, ",
    "quick question: ",
    "ok, ",
    "well, ",
    "{t}, ",
    "{t}: ",
    "{t}, ",
    "hey {t}, ",
    "could you help me? ",
    "one question, ",
    "good morning, ",
    "now, ",
)
SUFFIXES = (" please", ", please", " now", " today", " right now", ", thanks", " then", " by the way", " at the moment")


def _read(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    seen, _, held = (" ".join(part.split()) for part in text.partition("|"))
    return tuple(seen.split(" / ")), tuple(held.split(" / "))


SEEN = {intent: _read(text)[0] for intent, text in _RAW.items()}
UNSEEN = {intent: _read(text)[1] for intent, text in _RAW.items()}
